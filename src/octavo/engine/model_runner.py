"""``ModelRunner``: from what the scheduler decided to flat arrays, through the backend, to chosen tokens.

If a step fails, it is repeated by halves (KV writes are idempotent) until the guilty sequences are found: a fault
ends its request alone.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.backends.base import ChoiceBatch, Executable, Float32Array, Int32Array, StepInput
from octavo.engine.logits_processors import process_logits
from octavo.engine.prompt_scores import PromptScores, split_rows
from octavo.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from octavo.engine.sequence import Sequence
from octavo.engine.steady_batch import Owner, SteadyBatch

logger = logging.getLogger(__name__)


NOT_NUMBERS = "the model gave logits that are not numbers, or no token was left to choose from"

_SMALLEST_TOP_P = np.float32(2.0**-126)
"""Anything above zero keeps a token; it must not be rounded to zero. Of top_p, and of typical_p."""


@dataclass(slots=True)
class ChosenToken:
    """Not to be changed (one is made per token: freezing would cost more than all the rest of it).

    ``top``: (token id, log-probability) of the most probable tokens, where log-probabilities were asked for."""

    branch: int
    token_id: int
    logprob: float | None
    rank: int
    top: list[tuple[int, float]]


_TABLE_COLUMNS = 8
"""Block tables have a multiple of so many: room for those that grow while a batch is steady."""

Drafts = Mapping[Sequence, tuple[int, ...]]
"""The drafted tokens of the sequences that have any."""


@dataclass(slots=True)
class StepResult:
    """Per sequence that reached its last token: one chosen token per branch (n at a prompt's end), or what went wrong.

    A sequence with a draft has as many tokens as its draft held, and one more.

    ``scored``: log-probabilities of prompt tokens, where they were asked for.
    """

    chosen: dict[Sequence, list[ChosenToken]]
    errors: dict[Sequence, str]
    scored: dict[Sequence, PromptScores] = field(default_factory=dict)


def _flat(parts: Iterable[Iterable[int]], dtype: Any) -> npt.NDArray[Any]:
    return np.fromiter((x for part in parts for x in part), dtype)


def _counted_up(counts: Int32Array) -> Int32Array:
    """0 … count - 1 for each of ``counts``, one after the other."""
    ends: Int32Array = np.cumsum(counts, dtype=np.int32)
    up: Int32Array = np.arange(ends[-1] if len(ends) else 0, dtype=np.int32) - np.repeat(ends - counts, counts)
    return up


class _Entries:
    """Arrays of some choices, to be joined."""

    def __init__(self) -> None:
        self._choices: list[int] = []
        self._arrays: list[tuple[array[Any], ...]] = []

    def add(self, choice: int, *arrays: array[Any]) -> None:
        """``arrays`` have equal lengths and must not change until they are joined."""
        if len(arrays[0]):
            self._choices.append(choice)
            self._arrays.append(arrays)

    def __bool__(self) -> bool:
        return bool(self._choices)

    @property
    def choices(self) -> Int32Array:
        return np.repeat(np.array(self._choices, np.int32), np.array([len(arrays[0]) for arrays in self._arrays], np.int64))

    def joined(self, which: int, dtype: Any) -> npt.NDArray[Any]:
        return np.concatenate([np.frombuffer(arrays[which], dtype) for arrays in self._arrays] or [np.zeros(0, dtype)])


class ModelRunner:
    def __init__(self, executable: Executable) -> None:
        self.executable = executable
        self._block_size = executable.options.block_size
        self._steady: SteadyBatch | None = None
        """The last step, while all that it did may be done once more."""

    def run(self, output: SchedulerOutput) -> StepResult:
        """Carries out the data movements, then computes the scheduled tokens and chooses the next ones."""
        if output.block_copies:
            self.executable.copy_blocks(np.array(output.block_copies, np.int32))
        return self._run_or_halve(output.scheduled) if output.scheduled else StepResult({}, {})

    def _run_or_halve(self, entries: list[ScheduledSequence]) -> StepResult:
        try:
            return self._run(entries)
        except Exception as error:  # whatever a backend raises concerns some of these sequences alone
            if len(entries) == 1:
                logger.exception("request %s failed", entries[0].sequence.request.request_id)
                return StepResult({}, {entries[0].sequence: f"{type(error).__name__}: {error}"})
            middle = len(entries) // 2
            one, other = self._run_or_halve(entries[:middle]), self._run_or_halve(entries[middle:])
            return StepResult(one.chosen | other.chosen, one.errors | other.errors, one.scored | other.scored)

    def _run(self, entries: list[ScheduledSequence]) -> StepResult:
        steady, self._steady = self._steady, None
        if steady is not None and steady.advance(entries):
            result = StepResult(*self.draw(steady.owners, steady.batch, self.executable.run(steady.step), {}))
            self._steady = steady
            return result
        step = self.step_input(entries)
        logits = self.executable.run(step)
        choosing = [entry.sequence for entry in entries for _ in range(entry.num_choices)]
        drafts = {entry.sequence: entry.draft for entry in entries if entry.draft}
        result = StepResult({}, {})
        if len(step.logits_rows) > len(choosing):
            scoring, rows = split_rows(entries)
            for entry, scores in scoring.collect(self.executable.choose(logits, scoring.batch())):
                if scores is None:
                    result.errors[entry.sequence] = NOT_NUMBERS
                else:
                    result.scored[entry.sequence] = scores
            logits = logits[rows]
        if choosing and SteadyBatch.can_hold(entries):
            owners, batch = self.choice_batch(choosing, drafts)
            result.chosen, result.errors = self.draw(owners, batch, logits, drafts)
            self._steady = SteadyBatch(entries, step, owners, batch, self._block_size)
        elif choosing:
            result.chosen, errors = self.choose(choosing, logits, drafts)
            result.errors |= errors
        return result

    def choose(
        self, sequences: list[Sequence], logits: Float32Array, drafts: Drafts
    ) -> tuple[dict[Sequence, list[ChosenToken]], dict[Sequence, str]]:
        """The next tokens of ``sequences``, whose logits are the rows of ``logits``, and what went wrong with some.

        A sequence with a draft has a row for the position after each drafted token, too.
        """
        rows = None
        faults: dict[Sequence, str] = {}
        if any(sequence.request.params.logits_processors for sequence in sequences):
            logits, rows, faults = process_logits(sequences, logits)
        owners, batch = self.choice_batch(sequences, drafts, rows)
        chosen, errors = self.draw(owners, batch, logits, drafts) if owners else ({}, {})
        beams = [(sequence, row) for row, sequence in enumerate(sequences) if sequence.group is not None]
        if beams:
            batch = self.beam_batch(beams)
            of_beams, errors_of_beams = self.draw([(s, s.branch) for s, _ in beams], batch, logits, {})
            chosen.update(of_beams)
            errors.update(errors_of_beams)
        return {sequence: tokens for sequence, tokens in chosen.items() if sequence not in faults}, errors | faults

    def step_input(self, entries: list[ScheduledSequence]) -> StepInput:
        counts = np.fromiter((e.num_scheduled_tokens for e in entries), np.int32, len(entries))
        query_start_loc = np.zeros(len(entries) + 1, np.int32)
        np.cumsum(counts, out=query_start_loc[1:])
        seq_lens = np.fromiter((e.end for e in entries), np.int32, len(entries))
        width = -(-max(len(e.sequence.table) for e in entries) // _TABLE_COLUMNS) * _TABLE_COLUMNS
        block_tables = np.full((len(entries), width), -1, np.int32)
        for row, entry in zip(block_tables, entries, strict=True):
            row[: len(entry.sequence.table)] = entry.sequence.table.ids
        if query_start_loc[-1] == len(entries):  # one token each
            token_ids = np.fromiter((e.sequence.token_ids[e.start] for e in entries), np.int32, len(entries))
            positions = seq_lens - 1
            sequence_of_row = np.arange(len(entries))
        else:
            token_ids = _flat((e.token_ids for e in entries), np.int32)
            positions = _flat((range(e.start, e.end) for e in entries), np.int32)
            sequence_of_row = np.repeat(np.arange(len(entries)), counts)
        blocks = block_tables[sequence_of_row, positions // self._block_size].astype(np.int64)
        num_choices = np.fromiter((e.num_choices for e in entries), np.int32, len(entries))
        logits_rows = np.repeat(query_start_loc[1:] - num_choices, num_choices) + _counted_up(num_choices)
        if scored := [row + i - e.start for e, row in zip(entries, query_start_loc.tolist(), strict=False) for i in e.score_rows]:
            logits_rows = np.sort(np.concatenate([logits_rows, np.array(scored, np.int32)]))
        return StepInput(
            token_ids=token_ids,
            positions=positions,
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            block_tables=block_tables,
            slot_mapping=blocks * self._block_size + positions % self._block_size,
            logits_rows=logits_rows,
        )

    def choice_batch(
        self, sequences: list[Sequence], drafts: Drafts, drawn_rows: list[int] | None = None
    ) -> tuple[list[Owner], ChoiceBatch]:
        """One choice per row of a sequence, or one per branch at the end of a prompt that is to be continued n times.

        ``drawn_rows``: the rows of logits that they draw from, where these are not the model's own.
        """
        owners: list[Owner] = []
        rows: list[int] = []
        positions: list[int] = []
        edits, counted, allowed = _Entries(), _Entries(), _Entries()
        for row, sequence in enumerate(sequences):
            if sequence.group is not None:
                continue
            rules = sequence.request.rules
            ahead = 0  # drafted tokens before the position
            if sequence in drafts and owners and owners[-1][0] is sequence:
                ahead = positions[-1] - sequence.num_tokens + 1
            before = [*sequence.token_ids, *drafts[sequence][:ahead]] if ahead and rules is not None else sequence.token_ids
            edit = None if rules is None else rules.edits(before, sequence.num_prompt_tokens)
            first = sequence.num_output_tokens == 0 and sequence.branch == 0
            for branch in range(sequence.request.params.num_branches) if first else (sequence.branch,):
                if edit is not None:
                    edits.add(len(owners), edit.tokens, edit.values)
                if sequence.counts is not None:
                    counted.add(len(owners), sequence.counts.tokens, sequence.counts.counts)
                if rules is not None and rules.allowed is not None:
                    allowed.add(len(owners), rules.allowed)
                owners.append((sequence, branch))
                rows.append(row)
                positions.append(sequence.num_tokens + ahead)
        params = [sequence.request.params for sequence, _ in owners]
        more: dict[str, Any] = {}
        if drawn_rows is not None:
            more |= {"rows": np.array([drawn_rows[row] for row in rows], np.int32), "report_rows": np.array(rows, np.int32)}
        if any(p.typical_p != 1.0 for p in params):
            more["typical_p"] = np.maximum(np.array([p.typical_p for p in params], np.float32), _SMALLEST_TOP_P)
        if edits:
            more |= {"edit_choices": edits.choices, "edit_tokens": edits.joined(0, np.int32), "edit_values": edits.joined(1, np.float32)}
        if allowed:
            more |= {"allowed_choices": allowed.choices, "allowed_tokens": allowed.joined(0, np.int32)}
        if counted:
            more |= {"count_choices": counted.choices, "count_tokens": counted.joined(0, np.int32), "counts": counted.joined(1, np.int32)}
            for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
                more[name] = np.array([getattr(p, name) for p in params], np.float32)
        return owners, ChoiceBatch(
            **{"rows": np.array(rows, np.int32), **more},
            temperature=np.array([p.temperature for p in params], np.float32),
            top_k=np.array([max(0, p.top_k) for p in params], np.int32),
            top_p=np.maximum(np.array([p.top_p for p in params], np.float32), _SMALLEST_TOP_P),
            min_p=np.array([p.min_p for p in params], np.float32),
            seed=np.array([sequence.request.seed for sequence, _ in owners], np.uint64),
            branch=np.array([branch for _, branch in owners], np.uint32),
            position=np.array(positions, np.uint32),
            num_logprobs=np.array([(0 if p.ranks_branches else -1) if p.logprobs is None else p.logprobs for p in params], np.int32),
        )

    @staticmethod
    def beam_batch(beams: list[tuple[Sequence, int]]) -> ChoiceBatch:
        """For each of the sequences, whose logits are in these rows, the most probable tokens that its search looks at."""
        wanted = [max(s.group.num_continuations, s.request.params.logprobs or 0) for s, _ in beams if s.group is not None]
        return ChoiceBatch.greedy(np.array([row for _, row in beams], np.int32), np.array(wanted, np.int32))

    def draw(
        self, owners: list[Owner], batch: ChoiceBatch, logits: Float32Array, drafts: Drafts
    ) -> tuple[dict[Sequence, list[ChosenToken]], dict[Sequence, str]]:
        """What ``batch`` chooses for ``owners``, and what went wrong with some.

        Of a sequence with a draft, the tokens up to the first that is not the drafted one; a fault behind a token waits for its turn.
        """
        choices = self.executable.choose(logits, batch)
        chosen: dict[Sequence, list[ChosenToken]] = {}
        errors: dict[Sequence, str] = {}
        token_ids, wants = choices.token_ids.tolist(), batch.num_logprobs.tolist()
        if not drafts and max(wants) < 0 <= min(token_ids):
            for (sequence, branch), token_id in zip(owners, token_ids, strict=True):
                chosen.setdefault(sequence, []).append(ChosenToken(branch, token_id, None, 0, []))
            return chosen, errors
        vocab_size = self.executable.program.vocab_size
        positions = batch.position.tolist()
        logprobs, ranks = choices.logprobs.tolist(), choices.ranks.tolist()
        for i, (sequence, branch) in enumerate(owners):
            if sequence in drafts and (so_far := chosen.get(sequence)):
                follows = i > 0 and owners[i - 1][0] is sequence and positions[i] == sequence.num_tokens + len(so_far)
                if not follows or so_far[-1].token_id != drafts[sequence][len(so_far) - 1] or token_ids[i] < 0:
                    continue
            if token_ids[i] < 0:
                errors[sequence] = NOT_NUMBERS
                chosen.pop(sequence, None)
            elif sequence not in errors:
                k = min(wants[i], vocab_size)
                top = list(zip(choices.top_ids[i, :k].tolist(), choices.top_logprobs[i, :k].tolist(), strict=True)) if k > 0 else []
                token = ChosenToken(branch, token_ids[i], logprobs[i] if wants[i] >= 0 else None, ranks[i], top)
                chosen.setdefault(sequence, []).append(token)
        return chosen, errors
