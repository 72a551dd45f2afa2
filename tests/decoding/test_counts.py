"""``TokenCounts`` against counting anew, for any history of tokens and forks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from octavo.decoding import TokenCounts

tokens = st.integers(0, 9)


def contents(counts: TokenCounts) -> dict[int, int]:
    assert len(set(counts.tokens)) == len(counts.tokens) == len(counts.counts)
    return dict(zip(counts.tokens, counts.counts, strict=True))


def counted(prompt: list[int], output: list[int]) -> dict[int, int]:
    return {**dict.fromkeys(prompt, 0), **Counter(output)}


@given(prompt=st.lists(tokens), output=st.lists(tokens), ours=st.lists(tokens), theirs=st.lists(tokens))
def test_counts_are_those_of_the_whole_sequence(prompt: list[int], output: list[int], ours: list[int], theirs: list[int]) -> None:
    """After a fork, either goes its own way."""
    counts = TokenCounts(prompt)
    for token in output:
        counts.add(token)
    assert contents(counts) == counted(prompt, output)
    other = counts.fork()
    for token in ours:
        counts.add(token)
    for token in theirs:
        other.add(token)
    assert contents(counts) == counted(prompt, output + ours)
    assert contents(other) == counted(prompt, output + theirs)


def test_arrays_are_what_kernels_take() -> None:
    counts = TokenCounts([7])
    counts.add(3)
    assert (counts.tokens.itemsize, counts.counts.itemsize) == (4, 4)
    assert (memoryview(counts.tokens).format, memoryview(counts.counts).format) == ("i", "i")
