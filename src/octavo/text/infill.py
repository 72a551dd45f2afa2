"""Filling in the middle: the tokens with which a model is shown what comes before a gap and after it.

Models trained for it (Bavarian et al. 2022, Efficient Training of Language Models to Fill in the Middle) have three tokens of their own;
the prompt is PREFIX before SUFFIX after MIDDLE, and what the model writes then belongs between. Files name the tokens by role, or they are
known by how the families spell them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_PREFIX = ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "▁<PRE>", "<PRE>", "<|code_prefix|>")
_SUFFIX = ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "▁<SUF>", "<SUF>", "<|code_suffix|>")
_MIDDLE = ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "▁<MID>", "<MID>", "<|code_middle|>")
_ENDS = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<fim-repo>", "<|repo_name|>", "<|file_sep|>", "▁<EOT>", "<EOT>")
"""Tokens after which nothing belongs to the middle any more."""


@dataclass(frozen=True, slots=True)
class FimTokens:
    """``ends``: the ids that end a middle, besides the model's own end-of-sequence tokens."""

    prefix: int
    suffix: int
    middle: int
    ends: frozenset[int]

    def arrange(self, before: Sequence[int], after: Sequence[int]) -> list[int]:
        """The prompt that asks for what belongs between."""
        return [self.prefix, *before, self.suffix, *after, self.middle]


def find_fim_tokens(vocabulary: Mapping[str, int], named: Callable[[str], int | None] = lambda role: None) -> FimTokens | None:
    """``named``: the id that a file gives for ``prefix``, ``suffix`` or ``middle``. ``None`` if one of the three is missing."""

    def token(role: str, spellings: Sequence[str]) -> int | None:
        given = named(role)
        return given if given is not None else next((vocabulary[s] for s in spellings if s in vocabulary), None)

    prefix, suffix, middle = token("prefix", _PREFIX), token("suffix", _SUFFIX), token("middle", _MIDDLE)
    if prefix is None or suffix is None or middle is None or len({prefix, suffix, middle}) < 3:
        return None
    return FimTokens(prefix, suffix, middle, frozenset({prefix, suffix, middle, *(vocabulary[s] for s in _ENDS if s in vocabulary)}))
