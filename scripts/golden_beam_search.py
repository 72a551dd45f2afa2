"""Makes the golden beam searches that Octavo's are held against, from transformers, in fp32 on the CPU.

    pip install torch==2.13.0 transformers==5.23.0 gguf
    python scripts/golden_beam_search.py SmolLM2-135M-Instruct.Q4_1.gguf

Writes ``tests/golden/beam_search.json``: for each model (SmolLM2 expanded to fp32, and the random ``tests/weights/data/tiny_llama``) a
list of searches: prompt, parameters, and for each text its generated tokens and score. A search in which two candidates lie so
close at any decision that rounding could exchange them (``MARGIN``) would pass or fail by luck; another prompt is taken in its
place. Takes two minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_prompts import GOLDEN
from golden_transformers import load
from transformers import AutoModelForCausalLM

MARGIN = 1e-3
"""In cumulative log-probability."""
TINY = GOLDEN.parent / "weights" / "data" / "tiny_llama"


class Watched:
    """A model whose beam search notes how close its decisions were."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.margin = np.inf
        self._next, self._stop = model._get_running_beams_for_next_iteration, model._check_early_stop_heuristic
        model._get_running_beams_for_next_iteration = self._note_candidates
        model._check_early_stop_heuristic = self._note_heuristic

    def _note(self, gaps: torch.Tensor) -> None:
        if gaps.numel():
            self.margin = min(self.margin, gaps.abs().min().item())

    def _note_candidates(self, **step: Any) -> Any:
        scores, ends, width = step["topk_log_probs"][0], step["next_token_hits_stopping_criteria"][0], step["num_beams"]
        if not ends.all():
            going_on = scores[~ends]
            self._note(going_on[width - 1 : width + 1].diff())  # who is kept
        if ends[:width].any() or ends[width]:
            self._note(scores[width - 1 : width + 1].diff())  # who may finish
        return self._next(**step)

    def _note_heuristic(self, **step: Any) -> Any:
        if step["is_sent_finished"].all():
            longest, length = (step[name] - step["decoder_prompt_len"] for name in ("max_length", "cur_len"))
            penalty = step["length_penalty"]
            best = step["running_beam_scores"][0, 0] / (longest if step["early_stopping"] == "never" and penalty > 0 else length) ** penalty
            self._note((best - step["beam_scores"][0].min()) * length**penalty)
        return self._stop(**step)

    def search(self, prompt: list[int], params: dict[str, Any]) -> list[dict[str, Any]]:
        self.margin = np.inf
        with torch.inference_mode():
            out = self.model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), num_beams=params["beam_width"],
                num_return_sequences=params["beam_width"], max_new_tokens=params["max_tokens"], min_new_tokens=params["min_tokens"],
                length_penalty=params["length_penalty"], early_stopping=params["early_stopping"], do_sample=False, temperature=None,
                top_p=None, top_k=None, eos_token_id=params["stop_token_ids"] or None, pad_token_id=0,
                return_dict_in_generate=True, output_scores=True, output_logits=True,
            )  # fmt: skip
        texts = []
        lengths = (out.beam_indices >= 0).sum(-1)
        for sequence, length, score in zip(out.sequences, lengths, out.sequences_scores.tolist(), strict=True):
            texts.append({"token_ids": sequence[len(prompt) :][:length].tolist(), "score": score})
        self._note(out.sequences_scores.diff() * lengths.max() ** params["length_penalty"])
        return texts


def grid(stops: list[list[int]], widths: list[int], max_tokens: int) -> list[dict[str, Any]]:
    """Every early_stopping with every stop set, the other parameters in turn."""
    penalties, minima = itertools.cycle([1.0, 0.0, 2.0, -1.0, 0.6]), itertools.cycle([0, 0, max_tokens // 3])
    return [
        {
            "beam_width": width, "max_tokens": max_tokens, "min_tokens": next(minima), "length_penalty": next(penalties),
            "early_stopping": early, "stop_token_ids": stop,
        }
        for stop in stops for width in widths for early in (False, True, "never")
    ]  # fmt: skip


def searches(model: Any, prompts: Any, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    watched, found = Watched(model), []
    for params in cases:
        while True:
            prompt = next(prompts)
            texts = watched.search(prompt, params)
            print(f"margin {watched.margin:.5f}", flush=True)
            if watched.margin >= MARGIN:
                break
        found.append({"prompt": prompt, "params": params, "texts": texts})
        print(f"{len(found)} of {len(cases)}: {params}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    smollm2 = load(parser.parse_args().model)
    tiny = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    for model in (smollm2, tiny):
        model.generation_config.eos_token_id = None
    prompts = iter(json.loads((GOLDEN / "prompts.json").read_text())["prompts"])
    rng = np.random.default_rng(0)
    random_prompts = (rng.integers(5, 288, int(rng.integers(1, 40))).tolist() for _ in itertools.count())
    golden = {
        # a comma, a full stop and a line's end come often enough to end texts
        "smollm2": searches(smollm2, prompts, grid([[30], [28, 198]], [2, 4], 16) + grid([[28, 30]], [10], 12)[:1]),
        "tiny_llama": searches(tiny, random_prompts, grid([[77], [10, 20, 30, 40], []], [2, 3, 5, 8], 20)),
    }
    with (GOLDEN / "beam_search.json").open("w") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
