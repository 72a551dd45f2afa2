"""Beam search: ``BeamSearchParams`` and the rule by which beams grow, end and are ranked.

The rule is that of ``transformers`` (``GenerationMixin._beam_search``). In every step the continuations of all beams compete by
their cumulative log-probability, and the best ``num_candidates`` of them are looked at: twice the width, or more where more than
one token can end a text, so that enough remain to go on when all the best ones end. Those that end and are among the best
``beam_width`` compete for a place among the finished, by

    score = cumulative log-probability / generated tokens ** length_penalty

and the best of those that do not end are the next beams. Pure Python over ids and floats; which continuations a beam has is the
backend's to say, whether one ends is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from typing import Literal

from octavo.config import quoted
from octavo.decoding.params import RequestOutputKind, SamplingParams

MAX_BEAM_WIDTH = 64

EarlyStopping = bool | Literal["never"]
Continuations = Sequence[tuple[int, float]]
"""(token id, log-probability) of one beam's next tokens, most probable first."""


def _check(condition: bool, field: str, value: object, hint: str) -> None:
    if not condition:
        raise ValueError(f"{field}={quoted(value)} is invalid: {hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """Raises ``ValueError`` naming the field and the value when one is out of range.

    The best ``n`` (``None``: all ``beam_width``) texts are returned, best first. ``length_penalty`` above 0 favours long texts, below 0
    short ones; 0 ranks by cumulative log-probability. ``early_stopping``: ``True`` ends as soon as ``beam_width`` texts are finished;
    ``False`` when the best running beam, scored at its present length, no longer beats the worst of them; ``"never"`` only when it could
    not even at its best possible length. The other fields mean what they mean in ``SamplingParams``; ``min_tokens`` as there keeps
    stop tokens and stop strings from ending a text too early.
    """

    beam_width: int
    n: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True
    sampling: SamplingParams = field(init=False, repr=False)
    """How each of the texts ends and is shown."""

    def __post_init__(self) -> None:
        width = self.beam_width
        _check(isinstance(width, int) and not isinstance(width, bool), "beam_width", width, "must be an integer")
        _check(1 <= width <= MAX_BEAM_WIDTH, "beam_width", width, f"must be between 1 and {MAX_BEAM_WIDTH}")
        n = width if self.n is None else self.n
        _check(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= width, "n", n, f"must be between 1 and beam_width ({width})")
        penalty = self.length_penalty
        number = isinstance(penalty, int | float) and not isinstance(penalty, bool) and math.isfinite(penalty)
        _check(number and abs(penalty) <= 100, "length_penalty", penalty, "must be a number between -100 and 100")
        known = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        _check(known, "early_stopping", self.early_stopping, 'must be True, False or "never"')
        _check(self.max_tokens != 0, "max_tokens", self.max_tokens, "must be at least 1")
        sampling = SamplingParams(
            n=n,
            temperature=0.0,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            logprobs=self.logprobs,
            skip_special_tokens=self.skip_special_tokens,
            detokenize=self.detokenize,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        object.__setattr__(self, "sampling", sampling)

    @property
    def output_kind(self) -> RequestOutputKind:
        """Which texts win is known at the end."""
        return RequestOutputKind.FINAL_ONLY


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """A text as the chain of its tokens, last one first. The root has generated nothing and no parent."""

    parent: Beam | None = None
    token_id: int = -1
    logprob: float = 0.0
    cumulative_logprob: float = 0.0
    num_tokens: int = 0
    rank: int = 0
    """Of the last token among its siblings, 1 for the most probable."""
    siblings: Continuations = ()

    def chain(self) -> list[Beam]:
        """From the first generated token to this one."""
        links: list[Beam] = []
        beam = self
        while beam.parent is not None:
            links.append(beam)
            beam = beam.parent
        return links[::-1]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished text, or one cut off, and the score that ranks it."""

    beam: Beam
    score: float


@dataclass(frozen=True, slots=True)
class Growth:
    """A next beam, and the index of the present one that it continues."""

    parent: int
    beam: Beam


class BeamSearch:
    """The state of one search. ``ending_ids`` end a text, ``max_tokens`` bounds what is generated."""

    def __init__(self, params: BeamSearchParams, ending_ids: frozenset[int], max_tokens: int) -> None:
        self.width = params.beam_width
        self.length_penalty = params.length_penalty
        self.early_stopping = params.early_stopping
        self.min_tokens = params.min_tokens
        self.max_tokens = max_tokens
        self.ending_ids = ending_ids
        self.num_candidates = max(2, 1 + len(ending_ids)) * self.width
        self.beams = [Beam()]
        """Best first."""
        self.finished: list[Hypothesis] = []
        """Best first, at most ``width``."""
        self.done = False

    @property
    def num_continuations(self) -> int:
        """How many of each beam's most probable tokens the next step looks at."""
        return self.num_candidates + (len(self.ending_ids) if self._too_short else 0)

    @property
    def _too_short(self) -> bool:
        """Whether the next token may not yet be one that ends a text."""
        return self.beams[0].num_tokens < self.min_tokens

    def step(self, continuations: Sequence[Continuations], completes: Callable[[int, int], bool]) -> list[Growth]:
        """Grows the beams by one token. Returns the next beams, best first, none when the search is over.

        ``continuations[i]`` are those of ``beams[i]``. ``completes(i, token)``: whether that token completes a stop string of beam i.
        """
        length = self.beams[0].num_tokens + 1
        full = length >= self.max_tokens
        growths: list[Growth] = []
        for place, (parent, beam) in enumerate(islice(self._candidates(continuations), self.num_candidates)):
            if full or beam.token_id in self.ending_ids or completes(parent, beam.token_id):
                if place < self.width:
                    self._finish(beam)
            elif len(growths) < self.width:
                growths.append(Growth(parent, beam))
        self.beams = [growth.beam for growth in growths]
        self.done = not growths or not self._can_improve(length)
        return [] if self.done else growths

    def cut(self) -> list[Hypothesis]:
        """Everything there is, best first, at most ``width``: the finished texts and those still growing."""
        growing = [Hypothesis(beam, self.score(beam)) for beam in self.beams if beam.num_tokens]
        return sorted(self.finished + ([] if self.done else growing), key=lambda h: -h.score)[: self.width]

    def score(self, beam: Beam) -> float:
        return self._scored(beam.cumulative_logprob, beam.num_tokens)

    def _scored(self, cumulative_logprob: float, length: int) -> float:
        try:
            return cumulative_logprob / math.pow(length, self.length_penalty)
        except (OverflowError, ZeroDivisionError):  # a power beyond the floats: the limits
            return -0.0 if self.length_penalty > 0 else math.copysign(math.inf, cumulative_logprob)

    def _candidates(self, continuations: Sequence[Continuations]) -> Iterator[tuple[int, Beam]]:
        """All continuations of all beams by descending cumulative log-probability, each with the index of its parent."""
        banned = self.ending_ids if self._too_short else frozenset[int]()

        def of(index: int, beam: Beam, tokens: Continuations) -> Iterator[tuple[float, int, int, Beam]]:
            for rank, (token_id, logprob) in enumerate(tokens, 1):
                if token_id not in banned:
                    total = beam.cumulative_logprob + logprob
                    yield -total, index, rank, Beam(beam, token_id, logprob, total, beam.num_tokens + 1, rank, tokens)

        rows = (of(i, beam, tokens) for i, (beam, tokens) in enumerate(zip(self.beams, continuations, strict=True)))
        return ((index, beam) for _, index, _, beam in merge(*rows))

    def _finish(self, beam: Beam) -> None:
        """Keeps a finished text if it is among the best; of equals, the first."""
        score = self.score(beam)
        place = len(self.finished)
        while place and self.finished[place - 1].score < score:
            place -= 1
        self.finished.insert(place, Hypothesis(beam, score))
        del self.finished[self.width :]

    def _can_improve(self, length: int) -> bool:
        """Whether the best running beam may still beat the worst of a full set of finished texts."""
        if len(self.finished) < self.width:
            return True
        if self.early_stopping is True:
            return False
        hypothetical = self.max_tokens if self.early_stopping == "never" and self.length_penalty > 0 else length
        return self._scored(self.beams[0].cumulative_logprob, hypothetical) > self.finished[-1].score
