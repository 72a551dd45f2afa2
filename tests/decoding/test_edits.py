"""``LogitRules``: what parameters allow, forbid and favour at each position, against a statement of the same by search."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.decoding import LogitRules, SamplingParams

VOCAB = 128


def letters(text: str) -> list[int]:
    return [ord(character) for character in text]


def rules(eos_token_ids: Iterable[int] = (), **params: Any) -> LogitRules:
    return LogitRules(SamplingParams(**params), eos_token_ids=eos_token_ids, vocab_size=VOCAB, encode=letters)


def added(rules: LogitRules, output: str, prompt: str = "ab") -> dict[int, float]:
    """Token to the sum of what is added to its logit after ``output``."""
    edits = rules.edits(letters(prompt + output), len(prompt))
    sums: defaultdict[int, float] = defaultdict(float)
    for token, value in [] if edits is None else zip(edits.tokens, edits.values, strict=True):
        sums[token] += value
    return dict(sums)


def test_nothing_asked_for_is_nothing() -> None:
    assert rules([3]).edits([1, 2], 1) is None
    assert rules([3]).allowed is None


def test_min_tokens_forbids_every_way_to_end() -> None:
    ends = rules([3, VOCAB], min_tokens=2, stop_token_ids=[7, VOCAB + 5])
    assert [added(ends, output) for output in ("", "x", "xy", "xyz")] == [{3: -math.inf, 7: -math.inf}] * 2 + [{}] * 2


def test_bias_is_added_at_every_position() -> None:
    bias = rules([3], logit_bias={3: 5.0, 9: -100}, min_tokens=1)
    assert added(bias, "") == {3: -math.inf, 9: -100.0}
    assert added(bias, "x") == {3: 5.0, 9: -100.0}


@given(words=st.lists(st.text("ab ", min_size=1, max_size=4).filter(str.strip), max_size=4), output=st.text("ab ", max_size=12))
def test_bad_words_are_never_completed(words: list[str], output: str) -> None:
    """A token is forbidden exactly if it would complete a bad word, as it is or after a space, within the output."""
    spellings = {spelling for word in words for spelling in (word.lstrip(), " " + word.lstrip())}
    forbidden = {ord(c) for c in "ab " if any((output + c).endswith(spelling) for spelling in spellings)}
    assert added(rules(bad_words=words), output, prompt="a b") == dict.fromkeys(forbidden, -math.inf)


def test_allowed_tokens() -> None:
    assert list(rules(allowed_token_ids=[5, 3, 5]).allowed or ()) == [5, 3, 5]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logit_bias": {VOCAB: 1.0}}, r"^logit_bias\.128=1\.0 is invalid"),
        ({"allowed_token_ids": [0, VOCAB]}, r"^allowed_token_ids\[1\]=128 is invalid"),
        ({"allowed_token_ids": [3, 7], "stop_token_ids": [7], "min_tokens": 1}, r"^allowed_token_ids=\[3, 7\] is invalid"),
        ({"allowed_token_ids": [ord("a")], "bad_words": ["a"]}, r"^allowed_token_ids=\[97\] is invalid"),
    ],
)
def test_what_could_never_be_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules([3], **params)
