"""Log-probabilities of given tokens: how a prompt's logits rows are asked for them, and what a request has gathered of them.

A token that is given is a choice with no freedom: it alone is allowed, and since log-probabilities are those of the logits as the model
gave them, what the backend reports with the "choice" is the given token's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from octavo.backends.base import ChoiceBatch, Choices, Float32Array, Int32Array
from octavo.engine.scheduler_output import ScheduledSequence


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Of T tokens from position ``start`` on; K: how many of the most probable ones are told."""

    start: int
    logprobs: Float32Array  # (T,)
    ranks: Int32Array  # (T,)
    top_ids: Int32Array  # (T, K)
    top_logprobs: Float32Array  # (T, K)


@dataclass(slots=True)
class ScoreRequest:
    """The rows that a step's prompts want scored, in the order of the step; ``rows`` number the step's logits."""

    entries: list[tuple[ScheduledSequence, range]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    num_logprobs: list[int] = field(default_factory=list)

    def add(self, entry: ScheduledSequence, first_row: int) -> None:
        wanted = entry.score_rows
        request = entry.sequence.request
        count = len(self.rows)
        self.entries.append((entry, range(count, count + len(wanted))))
        self.rows += range(first_row, first_row + len(wanted))
        self.tokens += request.prompt_token_ids[wanted.start + 1 : wanted.stop + 1]
        self.num_logprobs += [request.params.prompt_logprobs or 0] * len(wanted)

    def batch(self) -> ChoiceBatch:
        count = len(self.rows)
        return ChoiceBatch.greedy(
            np.array(self.rows, np.int32),
            np.array(self.num_logprobs, np.int32),
            allowed_choices=np.arange(count, dtype=np.int32),
            allowed_tokens=np.array(self.tokens, np.int32),
        )

    def collect(self, choices: Choices) -> Iterator[tuple[ScheduledSequence, PromptScores | None]]:
        """Each entry with its scores; ``None`` where the model gave logits that are not numbers."""
        good = np.array(self.tokens, np.int32) == choices.token_ids
        for entry, rows in self.entries:
            part = slice(rows.start, rows.stop)
            width = entry.sequence.request.params.prompt_logprobs or 0
            yield (
                entry,
                PromptScores(
                    entry.score_rows.start + 1,
                    choices.logprobs[part],
                    choices.ranks[part],
                    choices.top_ids[part, :width],
                    choices.top_logprobs[part, :width],
                )
                if good[part].all()
                else None,
            )


def split_rows(entries: Iterable[ScheduledSequence]) -> tuple[ScoreRequest, list[int]]:
    """Of a step's logits rows: those to be scored, and those that give the next tokens."""
    scoring, row = ScoreRequest(), 0
    choosing: list[int] = []
    for entry in entries:
        if wanted := len(entry.score_rows):
            scoring.add(entry, row)
            row += wanted
        choosing += range(row, row + entry.num_choices)
        row += entry.num_choices
    return scoring, choosing
