"""OpenVINO GenAI's ``ContinuousBatchingPipeline``: PagedAttention on the CPU, with a given inference precision or its own choice of one.

Prefix caching is on where prompts share something. It finds only what has been computed already, so the first of the prompts that share
a prefix goes alone if ``first_then_rest`` asks for that.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.peers import workload
from benchmarks.peers.workers.lines import claim_stdout, expect, serve, settings
from benchmarks.peers.workload import Lengths


def main() -> None:
    channel = claim_stdout()
    chosen = settings()
    import numpy as np
    import openvino
    import openvino_genai as genai

    pipes: dict[str, Any] = {}

    def pipe(prefix_caching: bool = False) -> Any:
        """One pipeline at a time: two of them would share the threads and double the memory."""
        key = "prefix" if prefix_caching else "plain"
        if key not in pipes:
            pipes.clear()
            scheduling = genai.SchedulerConfig()
            scheduling.cache_size = chosen["kv_gib"]
            scheduling.max_num_seqs = chosen["max_num_seqs"]
            scheduling.max_num_batched_tokens = 512
            scheduling.enable_prefix_caching = prefix_caching
            scheduling.dynamic_split_fuse = True
            properties = {"INFERENCE_NUM_THREADS": chosen["threads"]}
            if chosen["precision"]:
                properties["INFERENCE_PRECISION_HINT"] = chosen["precision"]
            pipes[key] = genai.ContinuousBatchingPipeline(chosen["model"], scheduling, "CPU", properties)
        return pipes[key]

    def params(output_len: int, **more: Any) -> Any:
        made = genai.GenerationConfig()
        wanted = {"max_new_tokens": output_len, "ignore_eos": True, "do_sample": False, "apply_chat_template": False, **more}
        for name, value in wanted.items():
            setattr(made, name, value)
        return made

    def tensor(ids: list[int]) -> Any:
        return openvino.Tensor(np.array([ids], dtype=np.int64))

    def run(on: Any, prompts: list[list[int]], lengths: Lengths, **more: Any) -> float:
        """Seconds for all of them."""
        inputs = [tensor(ids) for ids in prompts]
        started = time.perf_counter()
        results = on.generate(inputs, [params(lengths.output_len, **more)] * len(prompts))
        time_s = time.perf_counter() - started
        counted = sum(len(ids) for result in results for ids in result.m_generation_ids)
        expect(counted, lengths.output_len * len(prompts) * more.get("num_return_sequences", 1))
        return time_s

    def stepwise(on: Any, prompts: list[list[int]], output_len: int) -> list[tuple[float, list[int]]]:
        """After each step: seconds since the beginning, and how many tokens each request has. Nothing is detokenised."""
        started = time.perf_counter()
        handles = [on.add_request(i, tensor(ids), params(output_len)) for i, ids in enumerate(prompts)]
        counts, moments = [0] * len(handles), []
        while on.has_non_finished_requests():
            on.step()
            for i, handle in enumerate(handles):
                while handle.can_read():
                    counts[i] += sum(len(output.generated_ids) for output in handle.read().values())
            moments.append((time.perf_counter() - started, counts.copy()))
        expect(sum(counts), output_len * len(prompts))
        return moments

    def decode(rep: int) -> dict[str, float]:
        moments = [m for m in stepwise(pipe(), [workload.decode(rep)], workload.DECODE.output_len) if m[1][0]]
        (begin, first), (end, last) = moments[0], moments[-1]
        return {"value": (last[0] - first[0]) / (end - begin)}

    def prefill(rep: int) -> dict[str, float]:
        moments = stepwise(pipe(), [workload.prefill(rep)], 1)
        return {"value": workload.PREFILL.input_len / moments[-1][0]}

    def requests(rep: int) -> dict[str, float]:
        time_s = run(pipe(), workload.serving(rep), workload.SERVING)
        return {"value": workload.SERVING.num_prompts * workload.SERVING.output_len / time_s}

    def context(rep: int) -> dict[str, float]:
        """Between the step after which all have a token and the first after which one has all of its tokens."""
        if rep >= workload.WARM_UP:
            return {"value": 0.0, "time_s": run(pipe(True), workload.context(), Lengths(workload.CONTEXT.input_len, 1))}
        moments = stepwise(pipe(True), workload.context(), workload.CONTEXT.output_len)
        full = [(t, counts) for t, counts in moments if min(counts) >= 1]
        begin = full[0]
        end = next(m for m in full if max(m[1]) == workload.CONTEXT.output_len)
        return {"value": (sum(end[1]) - sum(begin[1])) / (end[0] - begin[0]), "time_s": moments[-1][0]}

    def samples(rep: int) -> dict[str, float]:
        more = {"do_sample": True, "num_return_sequences": workload.NUM_SAMPLES, "temperature": 1.0, "rng_seed": rep}
        return {"value": run(pipe(True), [workload.samples(rep)], workload.SAMPLES, **more)}

    def beams(rep: int) -> dict[str, float]:
        return {"value": run(pipe(True), [workload.beams(rep)], workload.BEAMS, num_beams=workload.BEAM_WIDTH, num_return_sequences=1)}

    def prefix(rep: int) -> dict[str, float]:
        prompts = workload.prefix(rep)
        if not chosen["first_then_rest"]:
            return {"value": run(pipe(True), prompts, workload.PREFIX)}
        return {"value": run(pipe(True), prompts[:1], workload.PREFIX) + run(pipe(True), prompts[1:], workload.PREFIX)}

    def first_token(rep: int) -> dict[str, float]:
        return {"value": stepwise(pipe(), [workload.decode(rep)], 1)[-1][0]}

    measures = {
        "decode": decode,
        "prefill": prefill,
        "requests": requests,
        "context": context,
        "samples": samples,
        "beams": beams,
        "prefix": prefix,
        "first_token": first_token,
    }
    pipe()
    serve(channel, {"version": genai.__version__}, measures)


if __name__ == "__main__":
    main()
