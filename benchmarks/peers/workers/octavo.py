"""One ``octavo.LLM``: every row that is measured in process."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.peers import workload
from benchmarks.peers.workers.lines import claim_stdout, expect, serve, settings
from benchmarks.peers.workload import Lengths


def main() -> None:
    channel = claim_stdout()
    from octavo.decoding.beam_search import BeamSearchParams
    from octavo.decoding.params import SamplingParams
    from octavo.llm import LLM

    llm = LLM(**settings())

    def run(prompts: list[list[int]], lengths: Lengths, **params: Any) -> dict[str, Any]:
        """Times are seconds from the moment at which all requests are handed over."""
        chosen = {"temperature": 0.0, "max_tokens": lengths.output_len, "min_tokens": lengths.output_len, "ignore_eos": True, **params}
        started = time.monotonic()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], SamplingParams(**chosen))
        time_s = time.monotonic() - started
        counted = sum(len(branch.token_ids) for output in outputs for branch in output.outputs)
        expect(counted, lengths.output_len * len(prompts) * chosen.get("n", 1))
        moments = [output.metrics for output in outputs]
        first = [m.first_token_s - started for m in moments if m.first_token_s is not None]
        last = [m.finished_s - started for m in moments if m.finished_s is not None]
        return {"time_s": time_s, "output_tokens": counted, "first": first, "last": last}

    def decode(rep: int) -> dict[str, float]:
        done = run([workload.decode(rep)], workload.DECODE)
        return {"value": (done["output_tokens"] - 1) / (done["last"][0] - done["first"][0])}

    def prefill(rep: int) -> dict[str, float]:
        done = run([workload.prefill(rep)], workload.PREFILL)
        return {"value": workload.PREFILL.input_len / done["first"][0]}

    def requests(rep: int) -> dict[str, float]:
        done = run(workload.serving(rep), workload.SERVING)
        return {"value": done["output_tokens"] / done["time_s"]}

    def context(rep: int) -> dict[str, float]:
        """Each sequence's own time from its first token to its last; nearly all of it is spent in the full batch."""
        if rep >= workload.WARM_UP:
            return {"value": 0.0, "time_s": run(workload.context(), Lengths(workload.CONTEXT.input_len, 1))["time_s"]}
        done = run(workload.context(), workload.CONTEXT)
        spans = [end - begin for begin, end in zip(done["first"], done["last"], strict=True)]
        return {"value": len(spans) * (workload.CONTEXT.output_len - 1) / statistics.mean(spans), "time_s": done["time_s"]}

    def samples(rep: int) -> dict[str, float]:
        done = run([workload.samples(rep)], workload.SAMPLES, n=workload.NUM_SAMPLES, temperature=1.0, seed=rep)
        return {"value": done["time_s"]}

    def beams(rep: int) -> dict[str, float]:
        output_len = workload.BEAMS.output_len
        params = BeamSearchParams(beam_width=workload.BEAM_WIDTH, n=1, max_tokens=output_len, min_tokens=output_len, ignore_eos=True)
        started = time.monotonic()
        [output] = llm.beam_search([{"prompt_token_ids": workload.beams(rep)}], params)
        time_s = time.monotonic() - started
        expect(sum(len(branch.token_ids) for branch in output.outputs), output_len)
        return {"value": time_s}

    def prefix(rep: int) -> dict[str, float]:
        return {"value": run(workload.prefix(rep), workload.PREFIX)["time_s"]}

    def first_token(rep: int) -> dict[str, float]:
        return {"value": run([workload.decode(rep)], Lengths(workload.DECODE.input_len, 1))["time_s"]}

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
    serve(channel, {"max_model_len": llm.max_model_len}, measures)
    llm.shutdown()


if __name__ == "__main__":
    main()
