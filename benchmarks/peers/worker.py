"""The child process behind ``OctavoWorker``: one ``LLM``, one JSON line in (prompts, output length), one out (times).

``first_token_s`` and ``finished_s`` are seconds from the first request's arrival until the last first token, and until the last token.
"""

from __future__ import annotations

import json
import sys
import time

from octavo.decoding.params import SamplingParams
from octavo.llm import LLM


def main() -> None:
    llm = LLM(**json.loads(sys.argv[1]))
    print(json.dumps({"max_model_len": llm.max_model_len}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        length = request["output_len"]
        params = SamplingParams(temperature=0.0, max_tokens=length, min_tokens=length, ignore_eos=True)
        started = time.monotonic()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in request["prompts"]], params)
        time_s = time.monotonic() - started
        moments = [output.metrics for output in outputs]
        answer = {
            "time_s": time_s,
            "output_tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
            "first_token_s": max(m.first_token_s for m in moments if m.first_token_s is not None) - started,
            "finished_s": max(m.finished_s for m in moments if m.finished_s is not None) - started,
        }
        if answer["output_tokens"] != length * len(outputs):
            raise RuntimeError(f"asked for {length} tokens of {len(outputs)} prompts, got {answer['output_tokens']}")
        print(json.dumps(answer), flush=True)
    llm.shutdown()


if __name__ == "__main__":
    main()
