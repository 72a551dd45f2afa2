"""vLLM's ``LLM`` on the CPU backend, prefix caching on, as it is by default. ``VLLM_CPU_*`` come with the environment."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.peers import workload
from benchmarks.peers.workers.lines import claim_stdout, expect, serve, settings
from benchmarks.peers.workload import Lengths


def main() -> None:
    channel = claim_stdout()
    chosen = settings()
    import vllm
    from vllm.sampling_params import BeamSearchParams

    llm = vllm.LLM(
        chosen["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        enable_prefix_caching=True,
        disable_log_stats=False,
    )

    def run(prompts: list[list[int]], lengths: Lengths, **more: Any) -> tuple[float, list[Any]]:
        """Seconds for all of them, and vLLM's outputs."""
        wanted = {"temperature": 0.0, "ignore_eos": True, "detokenize": False, "max_tokens": lengths.output_len, **more}
        started = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], vllm.SamplingParams(**wanted), use_tqdm=False)
        time_s = time.perf_counter() - started
        counted = sum(len(branch.token_ids) for output in outputs for branch in output.outputs)
        expect(counted, lengths.output_len * len(prompts) * more.get("n", 1))
        return time_s, outputs

    def decode_spans(outputs: list[Any]) -> list[float]:
        return [output.metrics.last_token_ts - output.metrics.first_token_ts for output in outputs]

    def decode(rep: int) -> dict[str, float]:
        _, outputs = run([workload.decode(rep)], workload.DECODE)
        return {"value": (workload.DECODE.output_len - 1) / decode_spans(outputs)[0]}

    def prefill(rep: int) -> dict[str, float]:
        return {"value": workload.PREFILL.input_len / run([workload.prefill(rep)], workload.PREFILL)[0]}

    def requests(rep: int) -> dict[str, float]:
        time_s, _ = run(workload.serving(rep), workload.SERVING)
        return {"value": workload.SERVING.num_prompts * workload.SERVING.output_len / time_s}

    def context(rep: int) -> dict[str, float]:
        """Each sequence's own time from its first token to its last; nearly all of it is spent in the full batch."""
        if rep >= workload.WARM_UP:
            return {"value": 0.0, "time_s": run(workload.context(), Lengths(workload.CONTEXT.input_len, 1))[0]}
        time_s, outputs = run(workload.context(), workload.CONTEXT)
        rate = len(outputs) * (workload.CONTEXT.output_len - 1) / statistics.mean(decode_spans(outputs))
        return {"value": rate, "time_s": time_s}

    def samples(rep: int) -> dict[str, float]:
        return {"value": run([workload.samples(rep)], workload.SAMPLES, n=workload.NUM_SAMPLES, temperature=1.0, seed=rep)[0]}

    def beams(rep: int) -> dict[str, float]:
        prompt, output_len = workload.beams(rep), workload.BEAMS.output_len
        started = time.perf_counter()
        [output] = llm.beam_search(
            [{"prompt_token_ids": prompt}], BeamSearchParams(beam_width=workload.BEAM_WIDTH, max_tokens=output_len, ignore_eos=True)
        )
        time_s = time.perf_counter() - started
        expect(len(output.sequences[0].tokens), len(prompt) + output_len, "tokens of prompt and output")
        return {"value": time_s}

    def prefix(rep: int) -> dict[str, float]:
        return {"value": run(workload.prefix(rep), workload.PREFIX)[0]}

    def first_token(rep: int) -> dict[str, float]:
        return {"value": run([workload.decode(rep)], Lengths(workload.DECODE.input_len, 1))[0]}

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
    serve(channel, {"version": vllm.__version__}, measures)


if __name__ == "__main__":
    main()
