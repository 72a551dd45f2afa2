"""Log-likelihoods of the real model beside those of lm-eval's ``hf`` backend (fp32), request by request.

Continuations agree to 1e-3; whole texts, sums of some hundred fp32 logits' errors, to 1e-5 of their value.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "lm_eval.json").read_text())


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> LLM:
    return LLM(str(smollm2_path), dequantize=True, kv_cache_dtype="fp32", kv_cache_memory_bytes=256 << 20, weight_cache=False)


def test_continuations_and_whole_texts_are_as_probable_as_lm_eval_says(llm: LLM) -> None:
    choices = GOLDEN["octavo_choices"]
    got = llm.loglikelihood([tuple(choice["request"]) for choice in choices])
    for choice, mine in zip(choices, got, strict=True):
        assert mine.logprob == pytest.approx(choice["loglikelihood"], abs=1e-3), choice["request"]
        assert mine.is_greedy == choice["is_greedy"], choice["request"]
    texts = GOLDEN["octavo_texts"]
    prompts = [{"prompt_token_ids": [GOLDEN["prefix_token_id"], *llm.tokenizer.encode(text["request"][0])]} for text in texts]
    for text, mine in zip(texts, llm.loglikelihood(prompts), strict=True):
        assert mine.logprob == pytest.approx(text["loglikelihood"], rel=1e-5), text["request"]
