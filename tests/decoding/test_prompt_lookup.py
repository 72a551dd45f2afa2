"""Prompt lookup against a search of the whole text, and its lengths."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.decoding.prompt_lookup import PromptLookup


def searched(tokens: list[int], limit: int, min_ngram: int, max_ngram: int) -> list[int]:
    """The same rule, by looking at every place."""
    for n in range(min(max_ngram, len(tokens)), min_ngram - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                return tokens[end : end + limit]
    return []


@given(
    tokens=st.lists(st.integers(0, 3), max_size=60),
    steps=st.lists(st.integers(1, 9), max_size=20),
    limit=st.integers(0, 8),
    low=st.integers(1, 3),
)
def test_the_last_occurrence_of_the_longest_ending(tokens: list[int], steps: list[int], limit: int, low: int) -> None:
    lookup = PromptLookup(8, low, low + 2)
    length = 0
    for step in [*steps, len(tokens)]:
        length = min(len(tokens), length + step)
        assert lookup.draft(tokens[:length], limit) == searched(tokens[:length], limit, low, low + 2)


def test_a_fork_goes_its_own_way() -> None:
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 4, 40).tolist()
    lookup = PromptLookup(4)
    lookup.draft(trunk, 4)
    child = lookup.fork()
    for branch, own in ((lookup, rng.integers(0, 4, 30).tolist()), (child, rng.integers(0, 4, 30).tolist())):
        for n in range(30):
            assert branch.draft(trunk + own[:n], 4) == searched(trunk + own[:n], 4, 2, 4)


def test_drafts_shrink_when_they_fail_and_grow_when_they_hold() -> None:
    tokens = [*range(50), 0, 1]
    lookup = PromptLookup(8)
    lengths = []
    for accepted in (0, 0, 0, 0, 1, 2, 1, 4, 8):
        draft = lookup.draft(tokens, 32)
        assert draft == tokens[2 : 2 + len(draft)]
        lengths.append(len(draft))
        lookup.observe(len(draft), accepted)
    assert lengths == [8, 4, 2, 1, 1, 2, 4, 4, 8]


def test_no_draft_changes_no_length() -> None:
    lookup = PromptLookup(4)
    lookup.observe(4, 0)
    lookup.observe(0, 0)
    assert lookup.draft([1, 2, 3, 4, 5, 6, 1, 2], 9) == [3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"), [((0,), "max_draft=0"), ((4, 0), "min_ngram=0"), ((4, 3, 2), "min_ngram=3"), ((33,), "max_draft=33")]
)
def test_refusals(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PromptLookup(*arguments)
