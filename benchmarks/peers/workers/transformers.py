"""``transformers``' ``generate()`` with SDPA in fp32. It shares no prefixes: every prompt and every sample is computed whole."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.peers import workload
from benchmarks.peers.workers.lines import claim_stdout, expect, serve, settings
from benchmarks.peers.workload import Lengths


def main() -> None:
    channel = claim_stdout()
    chosen = settings()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(chosen["threads"])
    model = AutoModelForCausalLM.from_pretrained(chosen["model"], dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None  # lengths are fixed: never stop early

    class Moments(BaseStreamer):  # type: ignore[misc]
        """When each token came; the first call brings the prompt."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def put(self, value: Any) -> None:
            self.seconds.append(time.perf_counter())

        def end(self) -> None:
            pass

    def run(prompts: list[list[int]], lengths: Lengths, streamer: Any = None, **more: Any) -> float:
        """Seconds for all of them, as one batch."""
        ids = torch.tensor(prompts)
        wanted = {"do_sample": False, "max_new_tokens": lengths.output_len, "pad_token_id": workload.EOS, **more}
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), streamer=streamer, **wanted)
        time_s = time.perf_counter() - started
        made = out.shape[0] * (out.shape[1] - ids.shape[1])
        expect(made, lengths.output_len * len(prompts) * more.get("num_return_sequences", 1))
        return time_s

    def decode(rep: int) -> dict[str, float]:
        moments = Moments()
        run([workload.decode(rep)], workload.DECODE, moments)
        tokens = moments.seconds[1:]
        return {"value": (len(tokens) - 1) / (tokens[-1] - tokens[0])}

    def prefill(rep: int) -> dict[str, float]:
        return {"value": workload.PREFILL.input_len / run([workload.prefill(rep)], workload.PREFILL)}

    def requests(rep: int) -> dict[str, float]:
        time_s = run(workload.serving(rep), workload.SERVING)
        return {"value": workload.SERVING.num_prompts * workload.SERVING.output_len / time_s}

    def context(rep: int) -> dict[str, float]:
        """One prompt's cache, copied for each sequence; then steps of the whole batch."""
        steps = 2 if rep >= workload.WARM_UP else workload.CONTEXT.output_len
        batch = workload.CONTEXT.num_prompts
        with torch.inference_mode():
            cache = DynamicCache(config=model.config)
            model(torch.tensor([workload.context()[0]]), past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(batch)
            tokens = torch.tensor([[ids[-1]] for ids in workload.context()])
            started = time.perf_counter()
            for _ in range(steps):
                tokens = model(tokens, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
            time_s = time.perf_counter() - started
        return {"value": batch * steps / time_s, "time_s": time_s}

    def samples(rep: int) -> dict[str, float]:
        torch.manual_seed(rep)
        more = {"do_sample": True, "num_return_sequences": workload.NUM_SAMPLES, "temperature": 1.0, "top_k": 0}
        return {"value": run([workload.samples(rep)], workload.SAMPLES, **more)}

    def beams(rep: int) -> dict[str, float]:
        return {"value": run([workload.beams(rep)], workload.BEAMS, num_beams=workload.BEAM_WIDTH)}

    def prefix(rep: int) -> dict[str, float]:
        return {"value": run(workload.prefix(rep), workload.PREFIX)}

    def first_token(rep: int) -> dict[str, float]:
        return {"value": run([workload.decode(rep)], Lengths(workload.DECODE.input_len, 1))}

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
    serve(channel, {"version": f"{transformers.__version__}, torch {torch.__version__}"}, measures)


if __name__ == "__main__":
    main()
