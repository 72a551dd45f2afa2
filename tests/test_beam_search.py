"""``LLM.beam_search`` beside ``transformers``' beam search, on SmolLM2 and on a random model, and as its user calls it.

The golden searches are those of ``scripts/golden_beam_search.py``. All searches of a model run together, in one crowd.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, BeamSearchParams

GOLDEN = json.loads((Path(__file__).parent / "golden" / "beam_search.json").read_text())
TINY_LLAMA = str(Path(__file__).parent / "weights" / "data" / "tiny_llama")


def check(llm: LLM, searches: list[dict[str, Any]]) -> None:
    """The same tokens in the same order, cumulative log-probabilities to 1e-3."""
    outputs = llm.beam_search(
        [{"prompt_token_ids": search["prompt"]} for search in searches],
        [BeamSearchParams(**search["params"], ignore_eos=True) for search in searches],
    )
    for search, output in zip(searches, outputs, strict=True):
        params, want = search["params"], search["texts"]
        assert [o.token_ids for o in output.outputs] == [text["token_ids"] for text in want], params
        for o, text in zip(output.outputs, want, strict=True):
            assert o.cumulative_logprob is not None
            lengthened = len(o.token_ids) ** params["length_penalty"]
            assert o.cumulative_logprob == pytest.approx(text["score"] * lengthened, abs=1e-3), params
            assert o.score == pytest.approx(o.cumulative_logprob / lengthened)
    llm.engine.check_integrity()
    assert llm.engine.scheduler.kv.num_used_blocks == 0


def test_a_random_model_gives_what_transformers_finds() -> None:
    with LLM(TINY_LLAMA, kv_cache_dtype="fp32", kv_cache_memory_bytes=8 << 20) as llm:
        check(llm, GOLDEN["tiny_llama"])


@pytest.mark.model
def test_smollm2_gives_what_transformers_finds() -> None:
    with LLM("smollm2-135m-instruct", dequantize=True, kv_cache_dtype="fp32", kv_cache_memory_bytes=128 << 20, max_model_len=256) as llm:
        check(llm, GOLDEN["smollm2"])


def test_the_golden_searches_cover_the_parameters() -> None:
    for searches in GOLDEN.values():
        for field, values in {"early_stopping": {True, False, "never"}, "length_penalty": {1.0, 0.0, 2.0, -1.0, 0.6}}.items():
            assert {search["params"][field] for search in searches} == values
        assert any(search["params"]["min_tokens"] for search in searches)
        assert any(len(search["params"]["stop_token_ids"]) > 1 for search in searches)
        lengths = [len(text["token_ids"]) < search["params"]["max_tokens"] for search in searches for text in search["texts"]]
        assert any(lengths)
        assert not all(lengths)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("smollm2-135m-instruct", kv_cache_memory_bytes=64 << 20, max_model_len=1024) as llm:
        yield llm


@pytest.mark.model
def test_one_set_of_parameters_for_all_or_one_for_each(llm: LLM) -> None:
    narrow, wide = BeamSearchParams(beam_width=2, max_tokens=6), BeamSearchParams(beam_width=5, n=3, max_tokens=4, logprobs=2)
    outputs = llm.beam_search(["The capital of France is", "Two and two make"], [narrow, wide])
    assert [len(output.outputs) for output in outputs] == [2, 3]
    assert [output.prompt for output in outputs] == ["The capital of France is", "Two and two make"]
    assert llm.beam_search("Two and two make", wide)[0].outputs == outputs[1].outputs
    assert "Paris" in outputs[0].outputs[0].text
    for o in outputs[1].outputs:
        assert o.logprobs is not None
        assert all(len(entry) in (2, 3) and token in entry for entry, token in zip(o.logprobs, o.token_ids, strict=True))
    with pytest.raises(ValueError, match="params has 1 entries for 2 prompts"):
        llm.beam_search(["a", "b"], [narrow])


@pytest.mark.model
def test_stop_strings_end_a_beam_within_a_token_and_across_tokens(llm: LLM) -> None:
    """Without a penalty for length, a beam that ended early is more probable than any that went on from it."""
    free = llm.beam_search("Once upon a time", BeamSearchParams(beam_width=4, max_tokens=30, length_penalty=0.0))[0].outputs[0].text
    stop = free[40:46]
    for include in (False, True):
        params = BeamSearchParams(beam_width=4, max_tokens=30, length_penalty=0.0, stop=stop, include_stop_str_in_output=include)
        stopped = [o for o in llm.beam_search("Once upon a time", params)[0].outputs if o.finish_reason == "stop"]
        assert stopped
        for o in stopped:
            assert o.stop_reason == stop
            assert o.text.endswith(stop) == include
            assert o.text.count(stop) == include
    params = BeamSearchParams(beam_width=4, max_tokens=30, min_tokens=25, stop=stop)
    assert all(len(o.token_ids) > 25 for o in llm.beam_search("Once upon a time", params)[0].outputs)
