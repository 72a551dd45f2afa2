"""Log-likelihoods of the real model beside those of lm-eval's ``hf`` backend (fp64), request by request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, LogLikelihood, SamplingParams
from octavo.engine.likelihood import scored_prompts

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "lm_eval.json").read_text())


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> LLM:
    return LLM(str(smollm2_path), dequantize=True, kv_cache_dtype="fp32", kv_cache_memory_bytes=256 << 20, weight_cache=False)


def test_continuations_and_whole_texts_are_as_probable_as_lm_eval_says(llm: LLM) -> None:
    choices = GOLDEN["octavo_choices"]
    got = llm.loglikelihood([tuple(choice["request"]) for choice in choices])
    for choice, mine in zip(choices, got, strict=True):
        assert mine.logprob == pytest.approx(choice["loglikelihood"], abs=1e-3, rel=0), choice["request"]
        assert mine.is_greedy == choice["is_greedy"], choice["request"]
    texts = GOLDEN["octavo_texts"]
    prompts = [{"prompt_token_ids": [GOLDEN["prefix_token_id"], *llm.tokenizer.encode(text["request"][0])]} for text in texts]
    for text, mine in zip(texts, llm.loglikelihood(prompts), strict=True):
        assert mine.logprob == pytest.approx(text["loglikelihood"], abs=1e-3, rel=0), text["request"]


CONTEXT = "A book is made of sheets; a sheet is folded once for a folio, twice for a quarto and three times for an octavo. " * 3
TEXTS: list[Any] = [
    CONTEXT,
    "The quick brown fox jumps over the lazy dog.",
    *((CONTEXT, f" A sheet that is folded {ending}") for ending in ("three times is an octavo.", "twice is a knife.", "is red")),
]


def test_the_bits_depend_on_nothing_else(smollm2_path: Path) -> None:
    """Cold and from the cache, alone and beside requests that generate, whole and in chunks, with a pool so small that they give way."""
    options = {"kv_cache_memory_bytes": 64 << 20}
    with LLM(str(smollm2_path), **options) as llm:
        alone = []
        for text in TEXTS:
            alone += llm.loglikelihood([text])
        assert llm.loglikelihood(TEXTS) == alone
        cached = llm.generate(CONTEXT, SamplingParams(max_tokens=1, temperature=0))[0].num_cached_tokens
        assert cached > 64, "the scored text is in the prefix cache"
        prompts = scored_prompts(llm.tokenizer, TEXTS)
        crowd = [SamplingParams(n=4, max_tokens=12, seed=1, ignore_eos=True), *(prompt.params for prompt in prompts)]
        outputs = llm.generate([CONTEXT, *({"prompt_token_ids": prompt.token_ids} for prompt in prompts)], crowd)[1:]
        assert [LogLikelihood.of(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)] == alone
        assert outputs[2].num_cached_tokens > 64, "a context is taken from it"
        llm.engine.check_integrity()
    for changes in (
        {"max_num_seqs": 3, "max_num_batched_tokens": 17, "num_threads": 1},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 64},
        {"kv_cache_memory_bytes": 8 << 20},
    ):
        with LLM(str(smollm2_path), **{**options, **changes}) as llm:
            assert llm.loglikelihood(TEXTS) == alone, changes
            llm.engine.check_integrity()
