"""``Request`` and ``Sequence``: what was asked for, and each of its branches as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from octavo.decoding import BeamSearchParams, LogitRules, PromptLookup, RequestOutputKind, SamplingParams, TokenCounts
from octavo.engine.outputs import FinishReason, RequestMetrics
from octavo.kv import BlockHash, BlockHasher, BlockTable


class RequestStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class PreemptionMode(Enum):
    """How a preempted sequence comes back: its blocks from the swap file, or computed again."""

    SWAP = "swap"
    RECOMPUTE = "recompute"


@dataclass(slots=True, eq=False)
class Request:
    """``arrival`` numbers requests in the order of their coming; ``max_tokens`` is resolved against the context length.

    A beam search (``beam``) has the ``params`` of its results. ``rules``: what its parameters allow and forbid; ``None`` is everything.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival: int
    max_tokens: int
    seed: int
    metrics: RequestMetrics
    num_cached_tokens: int = 0
    error: str | None = None
    beam: BeamSearchParams | None = None
    rules: LogitRules | None = None
    num_branches: int = field(init=False)
    """The most sequences that it will have at once."""

    def __post_init__(self) -> None:
        self.num_branches = self.params.num_branches if self.beam is None else self.beam.beam_width

    @property
    def is_streamed(self) -> bool:
        """Whether somebody sees the tokens as they come."""
        return self.params.output_kind is not RequestOutputKind.FINAL_ONLY and not self.params.ranks_branches


class SequenceGroup:
    """Branches that are scheduled and preempted all or nothing: the beams of one search.

    It keeps ``width`` seats among the running sequences, however many of them it needs at the time.
    """

    __slots__ = ("members", "num_continuations", "width")

    def __init__(self, width: int, num_continuations: int) -> None:
        self.width = width
        self.num_continuations = num_continuations
        """How many of each member's most probable next tokens are wanted."""
        self.members: list[Sequence] = []
        """Those that are alive."""


class Sequence:
    """One branch of a request: its tokens, and how many of them have their KV computed.

    There is no prefill and no decode: ``num_computed_tokens`` chases ``num_tokens``, and whenever it catches up,
    the last row's logits give the next token.
    """

    __slots__ = (
        "branch",
        "counts",
        "finish_reason",
        "group",
        "hasher",
        "last_token_s",
        "lookup",
        "next_score_row",
        "num_computed_tokens",
        "num_prompt_tokens",
        "request",
        "status",
        "table",
        "token_ids",
    )

    def __init__(self, request: Request, branch: int, root: BlockHash, block_size: int) -> None:
        self.request = request
        self.branch = branch
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        params = request.params
        self.next_score_row = self.num_prompt_tokens if params.prompt_logprobs is None else max(0, params.prompt_logprobs_start - 1)
        """The first position whose logits are still wanted for the log-probability of the prompt token behind it."""
        self.num_computed_tokens = 0
        self.table = BlockTable()
        self.hasher = BlockHasher(root, block_size)
        self.hasher.extend(self.token_ids)
        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.counts = TokenCounts(self.token_ids if params.penalizes_prompt else ()) if params.penalizes else None
        """For penalties, where there are any."""
        self.group: SequenceGroup | None = None
        self.lookup: PromptLookup | None = None
        """Where drafts of its next tokens come from, if any are wanted."""
        self.last_token_s: float | None = None
        """When it got its last token, by ``time.monotonic()``."""

    def join(self, group: SequenceGroup) -> None:
        self.group = group
        group.members.append(self)

    @property
    def order(self) -> tuple[int, int]:
        """Who came first: earlier requests before later ones, earlier branches before later ones."""
        return (self.request.arrival, self.branch)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def wants_scores(self) -> bool:
        """Whether log-probabilities of prompt tokens are still to come."""
        return self.next_score_row < self.num_prompt_tokens - 1

    @property
    def num_reusable_tokens(self) -> int:
        """What ``KVCacheManager.find_prefix`` may find the computed prefix of: it ends where logits are wanted next."""
        return self.next_score_row + 1 if self.wants_scores else self.num_tokens

    @property
    def hashes(self) -> list[BlockHash]:
        """Names of the full blocks of its tokens, computed or not."""
        return self.hasher.hashes

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.hasher.extend(self.token_ids)
        if self.counts is not None:
            self.counts.add(token_id)

    def fork(self, branch: int, table: BlockTable) -> Sequence:
        """The same tokens under another branch number, over ``table``."""
        child = object.__new__(Sequence)
        child.request = self.request
        child.branch = branch
        child.token_ids = self.token_ids.copy()
        child.num_prompt_tokens = self.num_prompt_tokens
        child.next_score_row = self.next_score_row
        child.num_computed_tokens = self.num_computed_tokens
        child.table = table
        child.hasher = self.hasher.fork()
        child.status = self.status
        child.finish_reason = None
        child.counts = None if self.counts is None else self.counts.fork()
        child.lookup = None if self.lookup is None else self.lookup.fork()
        child.last_token_s = None
        child.group = None
        if self.group is not None:
            child.join(self.group)
        return child

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id}/{self.branch}, {self.num_computed_tokens}/{self.num_tokens} computed, {self.status.value})"
        )
