"""What a request gives back: ``RequestOutput`` with one ``CompletionOutput`` per branch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability (natural log) of one token; rank 1 is the most probable of the vocabulary."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class CompletionOutput:
    """One branch. ``stop_reason`` is the stop string or stop token id that ended it (``None`` for end-of-sequence).

    ``score``: what a beam search ranks by, the cumulative log-probability / generated tokens ** length_penalty.
    ``logprobs[i]`` maps token ids to ``Logprob`` for output token i: the chosen one first, then the most probable.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    score: float | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Wall-clock moments in seconds of ``time.monotonic()``.

    ``branch_block_steps``: KV blocks that the branches refer to, summed over branches and steps, while there is more than one branch;
    ``saved_block_steps``: how many of those were spared because branches share blocks.
    """

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    num_preemptions: int = 0
    branch_block_steps: int = 0
    saved_block_steps: int = 0

    @property
    def sharing_saved(self) -> float | None:
        """The share of KV memory that sharing between branches saved, from 0 to 1; ``None`` if there never were two."""
        return self.saved_block_steps / self.branch_block_steps if self.branch_block_steps else None


@dataclass(slots=True)
class RequestOutput:
    """``num_cached_tokens``: prompt tokens whose KV came from the prefix cache. ``error`` says what ended a faulty request.

    ``prompt_logprobs[i]``, if asked for, maps token ids to ``Logprob`` for prompt token i: its own first, then the most probable;
    ``None`` for the first token, which nothing precedes, and for those before ``prompt_logprobs_start``. In ``DELTA`` mode it comes
    with the first output.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    error: str | None = None
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(0.0))
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
