"""How a group of branches that lost its blocks shares them again: no token that branches have in common is computed twice.

A branch starts from the blocks of the one it has most tokens in common with, once they are computed there. In lexicographic order
that is the one before it.

    [prompt … a b c]            computed from the start
    [prompt … a b d]            shares … a b
    [prompt … a e]              shares … a
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from octavo.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Origin:
    """The first ``num_tokens`` tokens are those of ``source``."""

    source: Sequence
    num_tokens: int


def regrowth(members: Iterable[Sequence]) -> dict[Sequence, Origin]:
    """Where each of the members begins: all but the one that is computed from the start. They are branches of one request."""
    ordered = sorted(members, key=lambda s: s.token_ids)
    return {
        after: Origin(before, min(_num_common(before.token_ids, after.token_ids), after.num_tokens - 1))
        for before, after in pairwise(ordered)
    }


def _num_common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
