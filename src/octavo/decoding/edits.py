"""Logit edits: which tokens a request's parameters forbid (or favour) at the next position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from octavo.decoding.params import SamplingParams

LogitEdit = tuple[int, float]
"""(token id, value added to its logit); -inf forbids the token."""


def logit_edits(params: SamplingParams, num_output_tokens: int, eos_token_ids: Iterable[int]) -> Iterator[LogitEdit]:
    """``min_tokens`` forbids every token that would end the branch until so many tokens are out."""
    if num_output_tokens < params.min_tokens:
        for token in sorted({*eos_token_ids, *params.stop_ids}):
            yield token, float("-inf")
