"""A beam search under way: the rule's state (``decoding.BeamSearch``) beside the sequences that carry its beams.

When every beam has its candidates, the search grows by a token: sequences whose beams are not continued end and free their blocks,
those that are continued more than once are forked, and share all blocks until one of the branches writes.
"""

from __future__ import annotations

from octavo.decoding import BeamSearch, BeamSearchParams, Continuations, Growth, StopStringMatcher
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import Request, Sequence, SequenceGroup
from octavo.text import IncrementalDetokenizer, Tokenizer


class _StopWatch:
    """The text of one beam, for its stop strings."""

    __slots__ = ("_detokenizer", "_matcher", "_num_tokens", "_params")

    def __init__(self, params: BeamSearchParams, detokenizer: IncrementalDetokenizer) -> None:
        self._params = params
        self._detokenizer = detokenizer
        self._matcher = StopStringMatcher(params.sampling.stop_strings)
        self._num_tokens = 0

    def after(self, token_id: int) -> tuple[_StopWatch, bool]:
        """The text with one token more, and whether that completes a stop string."""
        grown = object.__new__(_StopWatch)
        grown._params = self._params
        grown._detokenizer = self._detokenizer.fork()
        grown._matcher = self._matcher.fork()
        grown._num_tokens = self._num_tokens + 1
        text = grown._detokenizer.push(token_id)
        if grown._num_tokens > self._params.min_tokens:
            return grown, grown._matcher.push(text)[1] is not None
        grown._matcher.hold(text)
        return grown, False


class RunningBeams:
    """``sequences[i]`` carries ``search.beams[i]``."""

    def __init__(self, request: Request, sequence: Sequence, tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> None:
        params = request.beam
        assert params is not None
        ending_ids = frozenset(params.sampling.stop_ids) | (frozenset() if params.ignore_eos else eos_token_ids)
        self.search = BeamSearch(params, ending_ids, request.max_tokens)
        self.group = SequenceGroup(params.beam_width, self.search.num_continuations)
        self.sequences = [sequence]
        self._continuations: dict[Sequence, Continuations] = {}
        self._watches: list[_StopWatch] = []
        if params.sampling.stop_strings:
            detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens, after=request.prompt_token_ids)
            self._watches = [_StopWatch(params, detokenizer)]
        sequence.join(self.group)

    def take(self, sequence: Sequence, continuations: Continuations) -> bool:
        """Notes a beam's candidates. Returns whether those of all beams are there."""
        self._continuations[sequence] = continuations
        return len(self._continuations) == len(self.sequences)

    def drop(self) -> None:
        """Forgets the candidates of beams that have lost their blocks; they will come again, and be the same."""
        self._continuations.clear()

    def grow(self, scheduler: Scheduler) -> None:
        """One token more for all beams; all sequences have ended when the search is over."""
        growths = self.search.step([self._continuations[s] for s in self.sequences], self._completes)
        self._continuations.clear()
        if self._watches:
            self._watches = [self._watches[g.parent].after(g.beam.token_id)[0] for g in growths]
        self.sequences = self._carriers(scheduler, growths)
        for sequence, growth in zip(self.sequences, growths, strict=True):
            sequence.append(growth.beam.token_id)
        if not self.search.done:
            self.group.num_continuations = self.search.num_continuations

    def _carriers(self, scheduler: Scheduler, growths: list[Growth]) -> list[Sequence]:
        """For each next beam the sequence of the one it continues, or a fork of it where that has gone to a better one already."""
        parents = {growth.parent for growth in growths}
        for index, sequence in enumerate(self.sequences):
            if index not in parents:
                scheduler.finish(sequence, None)
        free = iter(sorted(set(range(self.group.width)) - {s.branch for s in self.group.members}))
        carriers = []
        for growth in growths:
            sequence = self.sequences[growth.parent]
            if growth.parent in parents:
                parents.remove(growth.parent)
                carriers.append(sequence)
            else:
                carriers.append(scheduler.fork(sequence, next(free)))
        return carriers

    def _completes(self, index: int, token_id: int) -> bool:
        return bool(self._watches) and self._watches[index].after(token_id)[1]
