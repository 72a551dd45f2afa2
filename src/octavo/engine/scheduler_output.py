"""``SchedulerOutput``: what one step is to do, as decided by the scheduler and obeyed by the runner."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.engine.sequence import Sequence
from octavo.kv import BlockCopy, BlockHash


@dataclass(slots=True)
class ScheduledSequence:
    """``num_scheduled_tokens`` tokens of ``sequence``, from position ``start`` on; the last of them may be a ``draft``.

    Drafted tokens are not the sequence's yet: each becomes so if it is the one that is chosen for its position. Not to be changed: it is
    not frozen because one is made per sequence and step, and that would make it six times as dear.
    """

    sequence: Sequence
    start: int
    num_scheduled_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.num_scheduled_tokens

    @property
    def chooses(self) -> bool:
        """Whether its rows' logits give the sequence's next token."""
        return self.completes and self.sequence.request.max_tokens > 0

    @property
    def completes(self) -> bool:
        """Whether it computes the last of the sequence's tokens."""
        return self.end - len(self.draft) == self.sequence.num_tokens

    @property
    def token_ids(self) -> list[int]:
        """What is computed, drafted tokens included."""
        return [*self.sequence.token_ids[self.start : self.end - len(self.draft)], *self.draft]

    @property
    def num_choices(self) -> int:
        """How many of its last rows give a token: one for the sequence, and one after each drafted token."""
        return 1 + len(self.draft) if self.chooses else 0

    @property
    def score_rows(self) -> range:
        """Positions among its tokens whose logits give the log-probability of the prompt token behind them."""
        sequence = self.sequence
        if not sequence.wants_scores:
            return range(0)
        return range(max(self.start, sequence.next_score_row), min(self.end, sequence.num_prompt_tokens - 1))


@dataclass(slots=True)
class SchedulerOutput:
    """Data movements come first, in the order of these fields; no block that one of them reads is reused within the step."""

    swap_outs: list[tuple[int, BlockHash]] = field(default_factory=list)
    """(physical block, name under which its bytes are kept)."""
    block_copies: list[BlockCopy] = field(default_factory=list)
    """Copies on write."""
    swap_ins: list[tuple[BlockHash, int]] = field(default_factory=list)
    """(name of the kept bytes, physical block)."""
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    """Whose tokens are computed in this step."""
    preempted: list[Sequence] = field(default_factory=list)
    """Who lost their blocks to it."""
    outgrown: list[Sequence] = field(default_factory=list)
    """Who alone needs more than the whole pool: they end with ``finish_reason="length"``."""

    @property
    def num_tokens(self) -> int:
        return sum(s.num_scheduled_tokens for s in self.scheduled)

    @property
    def prompt_chunks(self) -> list[tuple[int, int]]:
        """(first position, tokens) of each sequence that computes more than its last token and what is drafted after it."""
        several = (e for e in self.scheduled if e.num_scheduled_tokens > 1)
        return [(e.start, e.num_scheduled_tokens) for e in several if e.num_scheduled_tokens - len(e.draft) > 1]
