"""How texts are cut into what is scored: windows that count every token once, continuations behind their contexts; and what comes of it
with a tiny random model, against the sum over single tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.engine.likelihood import ScoredPrompt, scored_prompts, text_windows

TINY = str(Path(__file__).parents[1] / "weights" / "data" / "tiny_llama")


class Letters:
    """A tokenizer with a token per character, and perhaps one that begins a text."""

    bos_token_id, eos_token_id = None, 1

    def __init__(self, prefix: tuple[int, ...] = ()) -> None:
        self.prefix_ids = prefix

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text]

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


@given(
    text=st.text("abcdefghé日", max_size=60),
    window=st.integers(2, 30),
    overlap=st.integers(1, 29),
    prefix=st.sampled_from([(), (1,)]),
)
def test_windows_count_every_token_once(text: str, window: int, overlap: int, prefix: tuple[int, ...]) -> None:
    """In order; full but for a short text; with enough context; each beginning as the tokenizer begins a text."""
    stride = max(1, window - overlap)
    tokenizer: Any = Letters(prefix)
    found, num_bytes = text_windows(tokenizer, text, window, stride)
    scored = [token for prompt in found for token in prompt.token_ids[prompt.start :]]
    expected = text if prefix else text[1:]
    assert "".join(map(chr, scored)) == expected
    assert num_bytes == len(expected.encode())
    position = 0 if prefix else 1
    for i, prompt in enumerate(found):
        ids = prompt.token_ids
        assert tuple(ids[: len(prefix)]) == prefix
        assert 1 <= prompt.start < len(ids) <= window
        position += len(ids) - prompt.start
        assert "".join(map(chr, ids[len(prefix) :])) == text[position - len(ids) + len(prefix) : position], "not what stands there"
        if i > 0:
            assert len(ids) == window
            assert prompt.start >= window - stride


def test_continuations() -> None:
    plain: Any = Letters()
    begun: Any = Letters((7,))
    ids = [*map(ord, "ab cd")]
    assert scored_prompts(plain, [("ab", " cd"), ("ab ", "cd"), "ab cd"]) == [
        ScoredPrompt(ids, 2),
        ScoredPrompt(ids, 2),
        ScoredPrompt(ids, 1),
    ]
    assert scored_prompts(begun, [("ab", " cd"), "ab cd"]) == [ScoredPrompt([7, *ids], 3), ScoredPrompt([7, *ids], 1)]
    assert scored_prompts(plain, [("", "ab cd"), {"prompt_token_ids": ids}]) == [ScoredPrompt([1, *ids], 1), ScoredPrompt(ids, 1)]
    assert scored_prompts(begun, [("  ", "x")]) == [ScoredPrompt([7, 32, 32, 120], 1)]
    for wrong in (5, ("a",), ("a", 5), {"ids": []}, None):
        with pytest.raises(ValueError, match=r"texts\[1\]"):
            scored_prompts(plain, ["a", wrong])


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(TINY, kv_cache_memory_bytes=1 << 20, max_num_seqs=4, num_threads=1) as llm:
        yield llm
        llm.engine.check_integrity()
        assert llm.engine.scheduler.kv.num_used_blocks == 0


TEXT = "a book is folded out of one sheet of paper, and another, and so on until it is one; then it is bound and read by someone"


def test_a_text_is_as_probable_as_its_tokens(llm: LLM) -> None:
    """Each as the next token of a greedy request says, which sees them one prompt at a time."""
    prompt = scored_prompts(llm.tokenizer, [TEXT])[0]
    ids = prompt.token_ids
    logprobs = []
    for end in range(prompt.start, len(ids)):
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, prompt_logprobs_start=end)
        output = llm.generate({"prompt_token_ids": ids[: end + 1]}, params)[0]
        assert output.prompt_logprobs is not None
        position = output.prompt_logprobs[end]
        assert position is not None
        logprobs.append(position[ids[end]].logprob)
    (score,) = llm.loglikelihood(TEXT)
    assert score.token_logprobs == logprobs
    assert score.logprob == math.fsum(logprobs)
    assert score.token_ids == ids[prompt.start :]
    found = llm.perplexity(TEXT)
    assert (found.log_likelihood, found.num_tokens, found.num_windows) == (score.logprob, len(logprobs), 1)
    assert found.perplexity == math.exp(-score.logprob / len(logprobs))
    assert found.bits_per_byte == -score.logprob / math.log(2) / found.num_bytes


def test_greedy_continuations_are_greedy(llm: LLM) -> None:
    output = llm.generate(TEXT, SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=0))[0]
    ids = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    (whole,) = llm.loglikelihood([{"prompt_token_ids": ids}])
    assert whole.token_logprobs[-5:] == [entry[i].logprob for i, entry in zip(ids[-5:], output.outputs[0].logprobs or [], strict=True)]
    assert not whole.is_greedy
    assert llm.loglikelihood([("a", ""), "", {"prompt_token_ids": ids[:1]}])[0].is_greedy


def test_long_texts_go_through_windows(llm: LLM) -> None:
    text = TEXT * 8
    calls: list[tuple[int, int]] = []
    found = llm.perplexity(text, window=40, stride=30, on_window=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, found.num_windows) for i in range(found.num_windows)]
    prompts, _ = text_windows(llm.tokenizer, text, 40, 30)
    by_hand = [llm.loglikelihood([{"prompt_token_ids": p.token_ids}])[0].token_logprobs[p.start - 1 :] for p in prompts]
    assert found.log_likelihood == pytest.approx(math.fsum(x for part in by_hand for x in part), abs=1e-9)
    assert found.num_tokens == sum(map(len, by_hand))
    with pytest.raises(ValueError, match="context length"):
        llm.loglikelihood([text])
    for sizes in ({"window": 1}, {"window": llm.max_model_len + 1}, {"stride": 0}, {"window": 20, "stride": 20}):
        with pytest.raises(ValueError, match=f"{list(sizes)[-1]}="):
            llm.perplexity(text, **sizes)
    assert math.isnan(llm.perplexity("").perplexity)
    assert math.isnan(llm.perplexity("").bits_per_byte)
