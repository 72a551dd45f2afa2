"""``SteadyBatch``: the arrays of a step of plain decoding, made into the next step's in place.

Most steps are like the one before: each of the same sequences computes the token that it was just given and is given the next. Then every
position moves on by one, and block tables change only where a block has become full. Making all arrays anew would cost a
single stream more than all else that a step does in Python.

It speaks of sequences whose choices depend on nothing but the last logits and parameters that stay the same: no rules, no counts, no
drafts, no beams, no functions of the user's.
"""

from __future__ import annotations

import numpy as np

from octavo.backends.base import ChoiceBatch, StepInput
from octavo.engine.scheduler_output import ScheduledSequence
from octavo.engine.sequence import Sequence

Owner = tuple[Sequence, int]
"""Whose a choice is: the sequence, and the number of the branch that is to have the token."""


class SteadyBatch:
    __slots__ = ("_block_size", "_starts", "_table_changes", "batch", "owners", "step")

    def __init__(self, entries: list[ScheduledSequence], step: StepInput, owners: list[Owner], batch: ChoiceBatch, block_size: int) -> None:
        self.step = step
        self.owners = owners
        self.batch = batch
        self._block_size = block_size
        self._starts = [entry.start for entry in entries]
        self._table_changes = [sequence.table.num_changes for sequence, _ in owners]

    @staticmethod
    def can_hold(entries: list[ScheduledSequence]) -> bool:
        """Whether each of these computes one token and chooses one, and will choose the one after it alike."""
        for entry in entries:
            sequence = entry.sequence
            request = sequence.request
            if (
                entry.num_scheduled_tokens > 1
                or not entry.chooses
                or (sequence.num_output_tokens == 0 and request.num_branches > 1)
                or (request.rules is not None and not request.rules.is_idle(sequence.num_output_tokens))
                or request.params.logits_processors
                or sequence.counts is not None
                or sequence.lookup is not None
                or sequence.group is not None
            ):
                return False
        return True

    def advance(self, entries: list[ScheduledSequence]) -> bool:
        """Makes ``step`` and ``batch`` those of ``entries`` if these are the next tokens of the same sequences.

        If they are not, it must not be used again.
        """
        if len(entries) != len(self.owners):
            return False
        size, changes = self._block_size, self._table_changes
        tokens: list[int] = []
        starts: list[int] = []
        moved: list[tuple[int, int, Sequence]] = []
        for row, entry in enumerate(entries):
            sequence, start = entry.sequence, entry.start
            if sequence is not self.owners[row][0] or start != self._starts[row] + 1 or start != len(sequence.token_ids) - 1:
                return False
            starts.append(start)
            tokens.append(sequence.token_ids[-1])
            if start % size == 0 or sequence.table.num_changes != changes[row]:
                moved.append((row, start, sequence))
        step = self.step
        for array in (step.positions, step.seq_lens, step.slot_mapping, self.batch.position):
            np.add(array, 1, out=array)
        step.token_ids[:] = tokens
        self._starts = starts
        for row, start, sequence in moved:
            ids = sequence.table.ids
            if len(ids) > step.block_tables.shape[1]:
                return False
            step.block_tables[row, : len(ids)] = ids
            step.slot_mapping[row] = ids[start // size] * size + start % size
            changes[row] = sequence.table.num_changes
        return True
