"""The scheduler: which sequences compute how many tokens in the next step, and who gives way when blocks run out.

There is no prefill and no decode; a step gives tokens to sequences under one budget, first come, first served:

1. sequences that lack one token (they are decoding) get it;
2. running sequences that lack more (their prompt, or what a preemption took) get a chunk of it;
3. waiting sequences start, from the longest computed prefix of their tokens, while the budget, the number of
   sequences and the free blocks last.

While somebody reads along, the prompts' share of the budget is also bounded in time, so that a long prompt never stalls the
running streams (``_prompt_share``); prompts whose log-probabilities are wanted share a budget of logits rows, too. When blocks run out,
the latest arrival gives way: its blocks go, it waits at the front and computes its tokens again later; the prefix cache often makes that
nearly free. The beams of a search come, and give way, all or nothing, and share again what they shared when they come back. Pure Python
over ids and counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from octavo.engine.outputs import FinishReason
from octavo.engine.regrowth import Origin, regrowth
from octavo.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from octavo.engine.sequence import RequestStatus, Sequence, SequenceGroup
from octavo.engine.step_time import StepTimeModel
from octavo.kv import BlockHash, KVCacheManager

_STEPS_BETWEEN_PURE_DECODES = 32


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
        max_slowdown: float = 1.7,
        max_score_rows: int = 1 << 30,
        step_time: StepTimeModel | None = None,
    ) -> None:
        self.kv = kv
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_step_ms = max_step_ms
        self.max_slowdown = max_slowdown
        self.max_score_rows = max_score_rows
        self.step_time = step_time or StepTimeModel()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.following: dict[Sequence, Origin] = {}
        """Running members of a group that will share the beginning of another as soon as it is computed."""
        self.num_preemptions = 0
        self._num_mixed_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    # -- coming and going -----------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Raises ``ValueError`` if its prompt and one block per branch could never fit into the pool.

        The prompt's last, partial block is shared until written, so it is among the branches' own.
        """
        num_branches = sequence.request.num_branches
        if sequence.group is not None and num_branches > self.max_num_seqs:
            raise ValueError(f"beam_width={num_branches} is invalid: at most max_num_seqs ({self.max_num_seqs}) sequences run at once")
        needed = sequence.num_prompt_tokens // self.kv.block_size + num_branches
        if needed > self.kv.num_blocks:
            raise ValueError(
                f"the prompt's {sequence.num_prompt_tokens} tokens and its {num_branches} branch(es) need {needed} blocks "
                f"of {self.kv.block_size} tokens, but the whole cache has {self.kv.num_blocks}: raise kv_cache_memory_bytes "
                "or shorten the prompt"
            )
        self.waiting.append(sequence)

    def fork(self, sequence: Sequence, branch: int) -> Sequence:
        """A branch that shares all of ``sequence``'s blocks; it runs at once if there is room for one more sequence."""
        child = sequence.fork(branch, self.kv.fork(sequence.table))
        if child.group is not None or self._seats_taken() < self.max_num_seqs:
            self._start(child)
        else:
            child.status = RequestStatus.WAITING
            self._wait(child)
        return child

    def finish(self, sequence: Sequence, reason: FinishReason | None) -> None:
        """Ends a sequence, wherever it is, and frees its blocks. Without a reason: a beam that is not continued."""
        if sequence.status is RequestStatus.FINISHED:
            return
        if sequence.status is RequestStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.kv.release(sequence.table)
        self.following.pop(sequence, None)
        if sequence.group is not None:
            sequence.group.members.remove(sequence)
        sequence.status = RequestStatus.FINISHED
        sequence.finish_reason = reason

    # -- a step ---------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        """Decides the next step and reserves its blocks."""
        plan = _Plan(self.max_num_batched_tokens, self.max_num_batched_tokens, self.max_score_rows)
        if self.following:
            self._follow()
        lacking = [(s, len(s.token_ids) - s.num_computed_tokens) for s in self.running]
        drafting = False
        for sequence, num_tokens in lacking:
            if num_tokens == 1:
                if plan.budget == 0:
                    break
                self._schedule_running(plan, sequence, 1)
                drafting = drafting or sequence.lookup is not None
        if drafting:
            self._draft(plan)
        begun = [s for s, num_tokens in lacking if num_tokens > 1 and s not in self.following]
        if plan.entries and (begun or self.waiting):
            plan.prompt_budget = self._prompt_share(plan, begun)
        for sequence in begun:
            if plan.prompt_budget == 0:
                break
            if num_tokens := self._chunk(plan, sequence, sequence.num_computed_tokens):
                self._schedule_running(plan, sequence, num_tokens)
        if self.waiting and not plan.output.preempted and not plan.output.outgrown:
            self._admit(plan)
        plan.output.scheduled = list(plan.entries.values())
        return plan.output

    def update(self, output: SchedulerOutput, num_accepted: Mapping[Sequence, int]) -> None:
        """After the step: its tokens are computed, and blocks that have become full can be found by others.

        ``num_accepted``: of the sequences with a draft, how many of its tokens were chosen. The others' places are written again.
        """
        for entry in output.scheduled:
            sequence = entry.sequence
            if sequence.status is RequestStatus.RUNNING:
                sequence.num_computed_tokens = entry.end - len(entry.draft) + num_accepted.get(sequence, 0)
                if sequence.wants_scores:
                    sequence.next_score_row = max(sequence.next_score_row, entry.score_rows.stop)
                self.kv.publish(sequence.table, sequence.hashes, sequence.num_computed_tokens)

    def check_integrity(self) -> None:
        """Recounts every block reference. Raises ``AssertionError``."""
        everyone = (*self.running, *self.waiting)
        self.kv.check_integrity(s.table for s in everyone)
        assert all(s.num_computed_tokens <= len(s.table) * self.kv.block_size for s in everyone)
        assert all(s.status is RequestStatus.RUNNING for s in self.running)
        assert all(s.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED) for s in self.waiting)
        assert [s.order for s in self.running] == sorted(s.order for s in self.running)
        assert self._seats_taken() <= self.max_num_seqs
        assert self.following.keys() <= set(self.running)
        for group in {s.group for s in everyone if s.group is not None}:
            assert len(group.members) <= group.width
            assert len({s.status for s in group.members}) == 1, "a group is scheduled in part"

    # -- how ------------------------------------------------------------------------------------------------

    def _draft(self, plan: _Plan) -> None:
        """Lets sequences that look ahead compute drafted tokens, where that takes nothing that others need."""
        for sequence, entry in plan.entries.items():
            if sequence.lookup is None or (sequence.num_output_tokens == 0 and sequence.request.num_branches > 1):
                continue  # the end of a prompt that several branches continue is where they part
            wanted = sequence.request.max_tokens - sequence.num_output_tokens - 1
            draft = sequence.lookup.draft(sequence.token_ids, min(wanted, plan.budget, plan.score_rows))
            end = entry.end + len(draft)
            if not draft or self.kv.blocks_needed(sequence.table, entry.end, end) > self.kv.num_free_blocks - len(self.running):
                continue
            plan.output.block_copies += self.kv.reserve(sequence.table, entry.end, end)
            plan.entries[sequence] = replace(entry, num_scheduled_tokens=1 + len(draft), draft=tuple(draft))
            plan.budget -= len(draft)
            plan.score_rows -= len(draft)

    def _prompt_share(self, plan: _Plan, begun: list[Sequence]) -> int:
        """Prompt tokens beside the decodes that the plan has so far; ``begun``: the prompts that are running.

        What a step lasts longer for its prompt tokens is a delay for every stream and a gain for every prompt. So it may last
        ``max_slowdown`` times what the decodes alone take, and longer in proportion where more prompts than streams wait; never longer
        than ``max_step_ms``. Requests of which only the end is wanted are not delayed by what falls between their tokens. Now and then
        a step takes no prompt tokens, so that what the decodes alone take stays known.
        """
        num_streams = sum(entry.sequence.request.is_streamed for entry in plan.entries.values())
        num_prompts = len(begun) + min(len(self.waiting), self.max_num_seqs - self._seats_taken())
        if not num_streams or not num_prompts:
            return plan.budget
        self._num_mixed_steps += 1
        if self._num_mixed_steps % _STEPS_BETWEEN_PURE_DECODES == 0:
            return 0
        decode_ms = self.step_time.decode_ms(sum(entry.num_scheduled_tokens for entry in plan.entries.values()))
        room_ms = self.max_step_ms
        if decode_ms is not None:
            room_ms = min(room_ms - decode_ms, (self.max_slowdown - 1) * decode_ms * max(1.0, num_prompts / num_streams))
        within = self.step_time.prompt_tokens_within(room_ms, begun[0].num_computed_tokens if begun else 0)
        return plan.budget if within is None else min(plan.budget, within)

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
        if num_tokens == 1 and self.kv.can_write(sequence.table, start):
            self._note(plan, sequence, start, 1)
            return
        while self.kv.blocks_needed(sequence.table, start, start + num_tokens) > self.kv.num_free_blocks:
            fitting = self._fitting(sequence, num_tokens)
            if fitting:
                num_tokens = fitting
                break
            victim = max(self._holders(), key=lambda s: s.order)
            if sequence in self._together(victim):
                if self.kv.num_used_blocks == len({block for s in self._together(sequence) for block in s.table.ids}):
                    self._outgrow(plan, sequence)
                else:
                    self._preempt(plan, sequence)
                return
            self._preempt(plan, victim)
        self._enter(plan, sequence, num_tokens)

    def _admit(self, plan: _Plan) -> None:
        """Starts waiting sequences in the order of their coming."""
        deferred: list[Sequence] = []
        pledged = sum(self._pledged(s) for s in self.running if s.num_uncomputed_tokens > 1)
        seats_taken = self._seats_taken()
        while self.waiting and plan.prompt_budget:
            sequence = self.waiting[0]
            seats = 1 if sequence.group is None else sequence.group.width
            if seats_taken + seats > self.max_num_seqs:
                break
            members = self._together(sequence)
            if len(members) > 1:
                origins = regrowth(members)
                sequence = next(s for s in members if s not in origins)
            else:
                origins = {}
            prefix = [] if len(sequence.table) else self.kv.find_prefix(sequence.hashes, sequence.num_reusable_tokens)
            start = sequence.num_computed_tokens if len(sequence.table) else len(prefix) * self.kv.block_size
            waits = self._computed_by_another(plan, sequence, len(prefix)) or not self._chunk(plan, sequence, start)
            if waits and not origins:
                deferred.append(self.waiting.popleft())
                continue
            if len(sequence.table):  # a branch that waited with its blocks
                needed = self.kv.blocks_needed(sequence.table, sequence.num_computed_tokens, sequence.num_tokens)
            else:
                in_use = sum(block.ref_count > 0 for block in prefix)
                needed = self.kv.blocks_for(sequence.num_tokens) - in_use
            followers_need = sum(self._pledged(s, origin) for s, origin in origins.items())
            needed += followers_need
            if needed > self.kv.num_free_blocks - pledged:
                if self.running:
                    break
                if self._drop_waiting_blocks(plan):
                    continue
                if needed <= self.kv.num_blocks:
                    break
                self._outgrow(plan, sequence)  # it grew to this length on shared blocks; alone it has no room
                continue
            for member in members:
                self.waiting.remove(member)
                if member in origins:
                    self._start(member)
            self.following.update(origins)
            seats_taken += seats
            if not len(sequence.table):
                sequence.num_computed_tokens = self.kv.attach(sequence.table, prefix)
                if sequence.status is RequestStatus.WAITING:
                    sequence.request.num_cached_tokens = sequence.num_computed_tokens
            self._start(sequence)
            num_tokens = self._chunk(plan, sequence, sequence.num_computed_tokens)
            self._enter(plan, sequence, num_tokens)
            pledged += (
                self.kv.blocks_needed(sequence.table, sequence.num_computed_tokens + num_tokens, sequence.num_tokens) + followers_need
            )
        self.waiting.extendleft(reversed(deferred))

    def _follow(self) -> None:
        """Lets members of a group that comes back share what others of it have computed by now."""
        for sequence, origin in list(self.following.items()):
            if origin.source.num_computed_tokens >= origin.num_tokens:
                sequence.table = self.kv.fork(origin.source.table, origin.num_tokens)
                sequence.num_computed_tokens = origin.num_tokens
                del self.following[sequence]

    def _pledged(self, sequence: Sequence, origin: Origin | None = None) -> int:
        """Blocks that a sequence will take until it has caught up, beside what it shares with its origin."""
        origin = origin or self.following.get(sequence)
        if origin is not None:
            return self.kv.blocks_for(sequence.num_tokens) - origin.num_tokens // self.kv.block_size
        return self.kv.blocks_needed(sequence.table, sequence.num_computed_tokens, sequence.num_tokens)

    def _seats_taken(self) -> int:
        """Running sequences, and those that running groups may yet grow to."""
        groups: set[SequenceGroup] = {s.group for s in self.running if s.group is not None}
        return len(self.running) + sum(group.width - len(group.members) for group in groups)

    @staticmethod
    def _together(sequence: Sequence) -> list[Sequence]:
        """Who comes and goes with it."""
        return [sequence] if sequence.group is None else list(sequence.group.members)

    def _computed_by_another(self, plan: _Plan, sequence: Sequence, num_cached_blocks: int) -> bool:
        """Whether the first block that the sequence lacks is being completed in this very step."""
        if not self.kv.enable_prefix_caching or len(sequence.table) or not plan.computing:
            return False
        usable = (sequence.num_reusable_tokens - 1) // self.kv.block_size
        return num_cached_blocks < usable and sequence.hashes[num_cached_blocks] in plan.computing

    def _enter(self, plan: _Plan, sequence: Sequence, num_tokens: int) -> None:
        start = sequence.num_computed_tokens
        plan.output.block_copies += self.kv.reserve(sequence.table, start, start + num_tokens)
        self._note(plan, sequence, start, num_tokens)

    def _note(self, plan: _Plan, sequence: Sequence, start: int, num_tokens: int) -> None:
        """What ``_enter`` does once there are blocks for the tokens."""
        plan.entries[sequence] = entry = ScheduledSequence(sequence, start, num_tokens)
        if sequence.wants_scores:
            plan.score_rows -= len(entry.score_rows)
        plan.budget -= num_tokens
        plan.prompt_budget = max(0, plan.prompt_budget - num_tokens)
        size = self.kv.block_size
        if (full := (start + num_tokens) // size) > start // size:
            plan.computing.update(sequence.hashes[start // size : full])

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

    def _outgrow(self, plan: _Plan, sequence: Sequence) -> None:
        """Ends a sequence, and who belongs to it, for want of memory."""
        for member in self._together(sequence):
            self._withdraw(plan, member)
            plan.output.outgrown.append(member)
            self.finish(member, "length")

    @staticmethod
    def _withdraw(plan: _Plan, sequence: Sequence) -> None:
        """Takes a sequence out of the plan again, and gives back what the plan had spent on it."""
        if entry := plan.entries.pop(sequence, None):
            plan.budget += entry.num_scheduled_tokens
            plan.score_rows += len(entry.score_rows) + len(entry.draft)

    def _preempt(self, plan: _Plan, victim: Sequence) -> None:
        """Takes a sequence's blocks, and those of who belongs to it; they wait to compute their tokens again."""
        victim.request.metrics.num_preemptions += 1
        for member in self._together(victim):
            self._take_blocks(plan, member)

    def _take_blocks(self, plan: _Plan, victim: Sequence) -> None:
        if victim.status is RequestStatus.RUNNING:
            self.running.remove(victim)
        else:
            self.waiting.remove(victim)
        self._withdraw(plan, victim)
        self.kv.release(victim.table)
        victim.num_computed_tokens = 0
        victim.status = RequestStatus.PREEMPTED
        self.following.pop(victim, None)
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
