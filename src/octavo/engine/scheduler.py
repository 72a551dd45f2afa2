"""The scheduler: which sequences compute how many tokens in the next step, and who gives way when blocks run out.

There is no prefill and no decode; a step gives tokens to sequences under one budget, first come, first served:

1. sequences that lack one token (they are decoding) get it;
2. running sequences that lack more (their prompt, or what a preemption took) get a chunk of it;
3. waiting sequences start, from the longest computed prefix of their tokens, while the budget, the number of
   sequences and the free blocks last.

While anybody decodes, the prompts' share of the budget is also bounded in time, so that a long prompt never stalls the
running streams; prompts whose log-probabilities are wanted share a budget of logits rows, too. When blocks run out, the latest
arrival gives way: its blocks go, it waits at the front and computes its tokens again later; the prefix cache often makes that nearly
free. Pure Python over ids and counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from octavo.engine.outputs import FinishReason
from octavo.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from octavo.engine.sequence import RequestStatus, Sequence
from octavo.engine.step_time import StepTimeModel
from octavo.kv import BlockHash, KVCacheManager


@dataclass(slots=True)
class _Plan:
    """A step in the making."""

    budget: int
    prompt_budget: int
    score_rows: int
    output: SchedulerOutput = field(default_factory=SchedulerOutput)
    entries: dict[Sequence, ScheduledSequence] = field(default_factory=dict)
    computing: set[BlockHash] = field(default_factory=set)
    """Blocks that this step completes: a sequence that needs one of them waits for it instead of computing it too."""


class Scheduler:
    def __init__(
        self,
        kv: KVCacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_step_ms: float,
        max_score_rows: int = 1 << 30,
        step_time: StepTimeModel | None = None,
    ) -> None:
        self.kv = kv
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_step_ms = max_step_ms
        self.max_score_rows = max_score_rows
        self.step_time = step_time or StepTimeModel()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    # -- coming and going -----------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Raises ``ValueError`` if its prompt and one block per branch could never fit into the pool.

        The prompt's last, partial block is shared until written, so it is among the branches' own.
        """
        needed = sequence.num_prompt_tokens // self.kv.block_size + sequence.request.params.n
        if needed > self.kv.num_blocks:
            raise ValueError(
                f"the prompt's {sequence.num_prompt_tokens} tokens and its {sequence.request.params.n} branch(es) need {needed} blocks "
                f"of {self.kv.block_size} tokens, but the whole cache has {self.kv.num_blocks}: raise kv_cache_memory_bytes "
                "or shorten the prompt"
            )
        self.waiting.append(sequence)

    def fork(self, sequence: Sequence, branch: int) -> Sequence:
        """A branch that shares all of ``sequence``'s blocks; it runs at once if there is room for one more sequence."""
        child = sequence.fork(branch, self.kv.fork(sequence.table))
        if len(self.running) < self.max_num_seqs:
            self._start(child)
        else:
            child.status = RequestStatus.WAITING
            self._wait(child)
        return child

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence, wherever it is, and frees its blocks."""
        if sequence.status is RequestStatus.FINISHED:
            return
        if sequence.status is RequestStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.kv.release(sequence.table)
        sequence.status = RequestStatus.FINISHED
        sequence.finish_reason = reason

    # -- a step ---------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        """Decides the next step and reserves its blocks."""
        plan = _Plan(self.max_num_batched_tokens, self.max_num_batched_tokens, self.max_score_rows)
        for sequence in [s for s in self.running if s.num_uncomputed_tokens == 1]:
            if plan.budget == 0:
                break
            self._schedule_running(plan, sequence, 1)
        if plan.entries:
            within = self.step_time.prompt_tokens_within(self.max_step_ms)
            plan.prompt_budget = plan.budget if within is None else min(plan.budget, within)
        for sequence in [s for s in self.running if s.num_uncomputed_tokens > 1]:
            if plan.prompt_budget == 0:
                break
            if num_tokens := self._chunk(plan, sequence, sequence.num_computed_tokens):
                self._schedule_running(plan, sequence, num_tokens)
        if not plan.output.preempted and not plan.output.outgrown:
            self._admit(plan)
        plan.output.scheduled = list(plan.entries.values())
        return plan.output

    def update(self, output: SchedulerOutput) -> None:
        """After the step: its tokens are computed, and blocks that have become full can be found by others."""
        for entry in output.scheduled:
            sequence = entry.sequence
            if sequence.status is RequestStatus.RUNNING:
                sequence.num_computed_tokens = entry.end
                sequence.next_score_row = max(sequence.next_score_row, entry.score_rows.stop)
                self.kv.publish(sequence.table, sequence.hashes, entry.end)

    def check_integrity(self) -> None:
        """Recounts every block reference. Raises ``AssertionError``."""
        everyone = (*self.running, *self.waiting)
        self.kv.check_integrity(s.table for s in everyone)
        assert all(s.num_computed_tokens <= len(s.table) * self.kv.block_size for s in everyone)
        assert all(s.status is RequestStatus.RUNNING for s in self.running)
        assert all(s.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED) for s in self.waiting)
        assert [s.order for s in self.running] == sorted(s.order for s in self.running)

    # -- how ------------------------------------------------------------------------------------------------

    @staticmethod
    def _chunk(plan: _Plan, sequence: Sequence, start: int) -> int:
        """How many tokens from ``start`` on a prompt may compute in this step: the rows to be scored among them are bounded, too."""
        num_tokens = min(sequence.num_tokens - start, plan.prompt_budget)
        first = max(start, sequence.next_score_row)
        if sequence.num_prompt_tokens - 1 - first <= plan.score_rows:
            return num_tokens
        return min(num_tokens, first + plan.score_rows - start)

    def _schedule_running(self, plan: _Plan, sequence: Sequence, num_tokens: int) -> None:
        """Gives ``num_tokens`` tokens to a running sequence, or fewer if only they fit; makes room by preemption."""
        if sequence.status is not RequestStatus.RUNNING:
            return  # preempted by an earlier one within this step
        start = sequence.num_computed_tokens
        while self.kv.blocks_needed(sequence.table, start, start + num_tokens) > self.kv.num_free_blocks:
            fitting = self._fitting(sequence, num_tokens)
            if fitting:
                num_tokens = fitting
                break
            victim = max(self._holders(), key=lambda s: s.order)
            if victim is sequence and self.kv.num_used_blocks == len(sequence.table):
                plan.output.outgrown.append(sequence)
                self.finish(sequence, "length")
                return
            self._preempt(plan, victim)
            if victim is sequence:
                return
        self._enter(plan, sequence, num_tokens)

    def _admit(self, plan: _Plan) -> None:
        """Starts waiting sequences in the order of their coming."""
        deferred: list[Sequence] = []
        pledged = sum(
            self.kv.blocks_needed(s.table, s.num_computed_tokens, s.num_tokens) for s in self.running if s.num_uncomputed_tokens > 1
        )
        while self.waiting and plan.prompt_budget and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            prefix = [] if len(sequence.table) else self.kv.find_prefix(sequence.hashes, sequence.num_reusable_tokens)
            start = sequence.num_computed_tokens if len(sequence.table) else len(prefix) * self.kv.block_size
            if self._computed_by_another(plan, sequence, len(prefix)) or not self._chunk(plan, sequence, start):
                deferred.append(self.waiting.popleft())
                continue
            if len(sequence.table):  # a branch that waited with its blocks
                needed = self.kv.blocks_needed(sequence.table, sequence.num_computed_tokens, sequence.num_tokens)
            else:
                in_use = sum(block.ref_count > 0 for block in prefix)
                needed = self.kv.blocks_for(sequence.num_tokens) - in_use
            if needed > self.kv.num_free_blocks - pledged:
                if self.running:
                    break
                if self._drop_waiting_blocks(plan):
                    continue
                if needed <= self.kv.num_blocks:
                    break
                plan.output.outgrown.append(sequence)  # it grew to this length on shared blocks; alone it has no room
                self.finish(sequence, "length")
                continue
            self.waiting.popleft()
            if not len(sequence.table):
                sequence.num_computed_tokens = self.kv.attach(sequence.table, prefix)
                if sequence.status is RequestStatus.WAITING:
                    sequence.request.num_cached_tokens = sequence.num_computed_tokens
            self._start(sequence)
            num_tokens = self._chunk(plan, sequence, sequence.num_computed_tokens)
            self._enter(plan, sequence, num_tokens)
            pledged += self.kv.blocks_needed(sequence.table, sequence.num_computed_tokens + num_tokens, sequence.num_tokens)
        self.waiting.extendleft(reversed(deferred))

    def _computed_by_another(self, plan: _Plan, sequence: Sequence, num_cached_blocks: int) -> bool:
        """Whether the first block that the sequence lacks is being completed in this very step."""
        if not self.kv.enable_prefix_caching or len(sequence.table) or not plan.computing:
            return False
        usable = (sequence.num_reusable_tokens - 1) // self.kv.block_size
        return num_cached_blocks < usable and sequence.hashes[num_cached_blocks] in plan.computing

    def _enter(self, plan: _Plan, sequence: Sequence, num_tokens: int) -> None:
        start = sequence.num_computed_tokens
        plan.output.block_copies += self.kv.reserve(sequence.table, start, start + num_tokens)
        plan.entries[sequence] = entry = ScheduledSequence(sequence, start, num_tokens)
        plan.score_rows -= len(entry.score_rows)
        plan.budget -= num_tokens
        plan.prompt_budget = max(0, plan.prompt_budget - num_tokens)
        size = self.kv.block_size
        plan.computing.update(sequence.hashes[start // size : (start + num_tokens) // size])

    def _fitting(self, sequence: Sequence, num_tokens: int) -> int:
        """Tokens of a chunk that the free blocks allow without taking anybody else's."""
        start = sequence.num_computed_tokens
        room = len(sequence.table) * self.kv.block_size - start
        shared = self.kv.blocks_needed(sequence.table, start, start + min(room, num_tokens))
        if shared > self.kv.num_free_blocks:
            return 0
        return min(num_tokens, room + (self.kv.num_free_blocks - shared) * self.kv.block_size)

    def _holders(self) -> Iterator[Sequence]:
        yield from self.running
        yield from (s for s in self.waiting if len(s.table))

    def _preempt(self, plan: _Plan, victim: Sequence) -> None:
        """Takes a sequence's blocks; it waits to compute its tokens again."""
        if victim.status is RequestStatus.RUNNING:
            self.running.remove(victim)
        else:
            self.waiting.remove(victim)
        if entry := plan.entries.pop(victim, None):
            plan.budget += entry.num_scheduled_tokens
            plan.score_rows += len(entry.score_rows)
        self.kv.release(victim.table)
        victim.num_computed_tokens = 0
        victim.status = RequestStatus.PREEMPTED
        victim.request.metrics.num_preemptions += 1
        self.num_preemptions += 1
        plan.output.preempted.append(victim)
        self._wait(victim)

    def _drop_waiting_blocks(self, plan: _Plan) -> bool:
        """Takes the blocks of the last waiting branch that holds any, so that the first in line can start."""
        holders = [s for s in self.waiting if len(s.table)]
        if not holders:
            return False
        self._preempt(plan, max(holders, key=lambda s: s.order))
        return True

    def _start(self, sequence: Sequence) -> None:
        sequence.status = RequestStatus.RUNNING
        position = len(self.running)
        while position and self.running[position - 1].order > sequence.order:
            position -= 1
        self.running.insert(position, sequence)

    def _wait(self, sequence: Sequence) -> None:
        """Into the queue before everybody who came later."""
        position = 0
        for waiting in self.waiting:
            if waiting.order > sequence.order:
                break
            position += 1
        self.waiting.insert(position, sequence)
