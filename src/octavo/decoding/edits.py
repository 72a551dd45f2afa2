"""``LogitRules``: which tokens a request's parameters allow, forbid or favour at the next position.

Made once per request; what is the same at every step is an array that is made once too. ``min_tokens``, ``logit_bias``, ``bad_words``
and ``allowed_token_ids`` are rules; penalties are not, as they depend on counts alone (``counts.py``).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from octavo.config import quoted
from octavo.decoding.params import SamplingParams

_FORBIDDEN = float("-inf")


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """``values[i]`` (fp32) is added to the logit of ``tokens[i]`` (int32); -inf forbids it. Not to be changed."""

    tokens: array[int]
    values: array[float]


def bad_word_sequences(word: str, encode: Callable[[str], list[int]]) -> list[tuple[int, ...]]:
    """The ways to spell a bad word in tokens: at the beginning of a text, and after a space."""
    word = word.lstrip()
    return list(dict.fromkeys(ids for text in (word, " " + word) if (ids := tuple(encode(text)))))


class LogitRules:
    """Raises ``ValueError`` naming field and value for a token outside the vocabulary, and if nothing could ever be chosen."""

    __slots__ = ("_always", "_endings", "_min_tokens", "_opening", "_sequences", "allowed")

    def __init__(
        self,
        params: SamplingParams,
        *,
        eos_token_ids: Iterable[int],
        vocab_size: int,
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        """``encode``: a text to token ids, without special tokens (for ``bad_words``)."""
        for token, value in (params.logit_bias or {}).items():
            if token >= vocab_size:
                raise ValueError(f"logit_bias.{token}={quoted(value)} is invalid: token ids are below {vocab_size}")
        for i, token in enumerate(params.allowed_token_ids or ()):
            if token >= vocab_size:
                raise ValueError(f"allowed_token_ids[{i}]={quoted(token)} is invalid: must be below {vocab_size}")
        self._min_tokens = params.min_tokens
        self._endings = sorted(token for token in {*eos_token_ids, *params.stop_ids} if token < vocab_size) if params.min_tokens else []
        self._sequences: dict[int, list[tuple[int, ...]]] = {}
        """Bad words of several tokens, by the last but one."""
        single: set[int] = set()
        for word in params.bad_words or ():
            assert encode is not None
            for sequence in bad_word_sequences(word, encode):
                if len(sequence) == 1:
                    single.add(sequence[0])
                else:
                    self._sequences.setdefault(sequence[-2], []).append(sequence)
        bias = params.logit_bias or {}
        self._always = _edits([*bias, *sorted(single)], [*bias.values(), *[_FORBIDDEN] * len(single)])
        self._opening = _extended(self._always, self._endings)
        """Until ``min_tokens`` are out."""
        self.allowed: array[int] | None = array("i", params.allowed_token_ids) if params.allowed_token_ids is not None else None
        if self.allowed is not None and not {*self.allowed} - single - {*self._endings}:
            raise ValueError(f"allowed_token_ids={quoted(list(self.allowed))} is invalid: bad_words or min_tokens forbid every one of them")

    def is_idle(self, num_output_tokens: int) -> bool:
        """Whether there are no edits and everything is allowed, from the position after so many tokens of output on."""
        opened = not self._endings or num_output_tokens >= self._min_tokens
        return opened and not self._sequences and not self._always.tokens and self.allowed is None

    def edits(self, token_ids: Sequence[int], num_prompt_tokens: int) -> LogitEdits | None:
        """Of the position after ``token_ids``, prompt and output; ``None`` if there are none."""
        num_output_tokens = len(token_ids) - num_prompt_tokens
        edits = self._opening if num_output_tokens < self._min_tokens else self._always
        if self._sequences and num_output_tokens:
            ends = {
                sequence[-1]
                for sequence in self._sequences.get(token_ids[-1], ())
                if len(sequence) <= num_output_tokens + 1 and tuple(token_ids[1 - len(sequence) :]) == sequence[:-1]
            }
            if ends:
                edits = _extended(edits, sorted(ends))
        return edits if edits.tokens else None


def _edits(tokens: Iterable[int], values: Iterable[float]) -> LogitEdits:
    return LogitEdits(array("i", tokens), array("f", values))


def _extended(edits: LogitEdits, forbidden: Sequence[int]) -> LogitEdits:
    if not forbidden:
        return edits
    return LogitEdits(edits.tokens + array("i", forbidden), edits.values + array("f", [_FORBIDDEN]) * len(forbidden))
