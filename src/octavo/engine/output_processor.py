"""From chosen tokens to what the caller sees: text, log-probabilities, and the decision that a branch has ended."""

from __future__ import annotations

from octavo.decoding import Hypothesis, RequestOutputKind, StopStringMatcher
from octavo.engine.beams import RunningBeams
from octavo.engine.model_runner import ChosenToken
from octavo.engine.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput
from octavo.engine.prompt_scores import PromptScores
from octavo.engine.sequence import Request, Sequence
from octavo.text import IncrementalDetokenizer, Tokenizer


def _logprobs_of(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int, top: list[tuple[int, float]]) -> dict[int, Logprob]:
    """One position: the token that stands there, then the most probable ones."""

    def text_of(token_id: int) -> str:
        return tokenizer.token_bytes(token_id).decode(errors="replace")

    entry = {token_id: Logprob(logprob, rank, text_of(token_id))}
    for top_rank, (top_id, top_logprob) in enumerate(top, 1):
        if top_id not in entry:
            entry[top_id] = Logprob(top_logprob, top_rank, text_of(top_id))
    return entry


class BranchOutput:
    """The growing output of one branch, and how much of it has been handed out."""

    __slots__ = (
        "_detokenizer",
        "_endings",
        "_pieces",
        "_request",
        "_sent_tokens",
        "_stops",
        "_tokenizer",
        "_undecoded",
        "cumulative_logprob",
        "finish_reason",
        "index",
        "logprobs",
        "score",
        "stop_reason",
        "token_ids",
    )

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> None:
        params = request.params
        self._request = request
        self._tokenizer = tokenizer
        self._endings = {*params.stop_ids, *(() if params.ignore_eos else eos_token_ids)}
        self._detokenizer = (
            IncrementalDetokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens, after=request.prompt_token_ids)
            if params.detokenize
            else None
        )
        self._stops = StopStringMatcher(params.stop_strings, include=params.include_stop_str_in_output)
        self._pieces: list[str] = []
        self._undecoded: list[int] = []
        """Tokens whose text nobody has needed yet: where nothing is looked for in it, it is made when it is shown."""
        self._sent_tokens = 0
        self.index = index
        self.token_ids: list[int] = []
        self.cumulative_logprob: float | None = 0.0 if params.logprobs is not None or params.ranks_branches else None
        self.logprobs: list[dict[int, Logprob]] | None = [] if params.logprobs is not None else None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.score: float | None = None

    def push(self, token: ChosenToken) -> FinishReason | None:
        """Takes the next token. Returns why the branch ends with it, if it does."""
        params = self._request.params
        self.token_ids.append(token.token_id)
        if self.cumulative_logprob is not None and token.logprob is not None:
            self.cumulative_logprob += token.logprob
        if self.logprobs is not None and token.logprob is not None:
            self.logprobs.append(_logprobs_of(self._tokenizer, token.token_id, token.logprob, token.rank, token.top))
        if token.token_id in self._endings:
            if token.token_id in params.stop_ids:
                self.stop_reason = token.token_id
            if params.include_stop_str_in_output:
                self._push_text(token.token_id, match=False)
            self.finish("stop")
        elif not params.stop:
            self._undecoded.append(token.token_id)
        elif (stop := self._push_text(token.token_id, match=len(self.token_ids) > params.min_tokens)) is not None:
            self.stop_reason = stop
            self.finish_reason = "stop"
        if self.finish_reason is None and len(self.token_ids) >= self._request.max_tokens:
            self.finish("length")
        return self.finish_reason

    def replay(self, hypothesis: Hypothesis, reason: FinishReason) -> None:
        """Becomes the text of a beam, which ends with ``reason`` unless its last token says why."""
        num_top = self._request.params.logprobs or 0
        for beam in hypothesis.beam.chain():
            top = list(beam.siblings[:num_top])
            self.push(ChosenToken(self.index, beam.token_id, beam.logprob, beam.rank, top))
        self.finish(reason)
        self.cumulative_logprob = hypothesis.beam.cumulative_logprob
        self.score = hypothesis.score

    def finish(self, reason: FinishReason) -> None:
        """Ends the branch; text that was held back comes out."""
        if self.finish_reason is None:
            self.finish_reason = reason
            if self._detokenizer is not None:
                self._decode()
                text, stop = self._stops.push(self._detokenizer.flush())
                self._pieces.append(text)
                if stop is None:
                    self._pieces.append(self._stops.flush())

    def take(self, kind: RequestOutputKind) -> CompletionOutput:
        """The output so far; in ``DELTA`` mode only what is new since the last call."""
        self._decode()
        delta = kind is RequestOutputKind.DELTA
        start = self._sent_tokens if delta else 0
        if not delta:
            self._pieces = ["".join(self._pieces)]
        text = "".join(self._pieces)
        if delta:
            self._pieces.clear()
            self._sent_tokens = len(self.token_ids)
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=self.token_ids[start:],
            cumulative_logprob=self.cumulative_logprob,
            logprobs=None if self.logprobs is None else self.logprobs[start:],
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            score=self.score,
        )

    def _decode(self) -> None:
        """Makes the text of tokens that has not been needed so far."""
        if self._undecoded and self._detokenizer is not None:
            self._pieces.append(self._detokenizer.push_all(self._undecoded))
        self._undecoded.clear()

    def _push_text(self, token_id: int, *, match: bool) -> str | None:
        self._decode()
        if self._detokenizer is None:
            return None
        text = self._detokenizer.push(token_id)
        text, stop = self._stops.push(text) if match else (self._stops.hold(text), None)
        if text:
            self._pieces.append(text)
        return stop


_GRAVEST_FIRST: tuple[FinishReason, ...] = ("error", "abort", "length", "stop")


class RequestState:
    """A request under way: its branches' outputs, and the ``RequestOutput`` made of them."""

    __slots__ = ("_prompt_logprobs", "_scores", "_tokenizer", "beams", "branches", "dirty", "request", "sequences", "silent")

    def __init__(self, request: Request, tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> None:
        self.request = request
        self.branches = [BranchOutput(request, i, tokenizer, eos_token_ids) for i in range(request.params.num_branches)]
        self.sequences: dict[int, Sequence] = {}
        """The branches that are alive, as the scheduler knows them."""
        self._tokenizer = tokenizer
        self._scores: list[PromptScores] = []
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if request.params.prompt_logprobs is not None:
            self._prompt_logprobs = [None] * len(request.prompt_token_ids)
        self.beams: RunningBeams | None = None
        self.dirty: set[int] = set()
        """Branches with something new."""
        self.silent = request.params.output_kind is RequestOutputKind.FINAL_ONLY or request.params.ranks_branches
        """Whether it shows nothing before it has finished."""

    def branch(self, index: int) -> BranchOutput:
        """A branch that is about to have something new."""
        self.dirty.add(index)
        return self.branches[index]

    def finish(self, reason: FinishReason) -> None:
        """Ends the branches that have not ended yet; those of a beam search are what it has found so far."""
        if self.beams is not None:
            results = self.beams.search.cut()[: len(self.branches)]
            del self.branches[max(1, len(results)) :]
            for index, hypothesis in enumerate(results):
                self.branch(index).replay(hypothesis, reason)
            self.beams = None
        for branch in self.branches:
            if branch.finish_reason is None:
                self.branch(branch.index).finish(reason)

    def take_scores(self, scores: PromptScores) -> None:
        """Log-probabilities of prompt tokens; they come in order, chunk by chunk."""
        self._scores.append(scores)

    def _take_prompt_logprobs(self) -> list[dict[int, Logprob] | None] | None:
        """All so far; in ``DELTA`` mode only once."""
        logprobs, prompt = self._prompt_logprobs, self.request.prompt_token_ids
        if logprobs is None:
            return None
        for scores in self._scores:
            ids, ranks, values = prompt[scores.start :], scores.ranks.tolist(), scores.logprobs.tolist()
            tops = [list(zip(*top, strict=True)) for top in zip(scores.top_ids.tolist(), scores.top_logprobs.tolist(), strict=True)]
            for position, (token_id, value, rank, top) in enumerate(zip(ids, values, ranks, tops, strict=False), scores.start):
                logprobs[position] = _logprobs_of(self._tokenizer, token_id, value, rank, top)
        self._scores.clear()
        if self.request.params.output_kind is RequestOutputKind.DELTA:
            self._prompt_logprobs = None
        return logprobs

    def _keep_the_best(self) -> None:
        """The ``n`` branches of the highest cumulative log-probability, renumbered best first; those without a token come last."""
        ranked = sorted(self.branches, key=lambda b: (not b.token_ids, -(b.cumulative_logprob or 0.0)))
        self.branches = ranked[: self.request.params.n]
        for index, branch in enumerate(self.branches):
            branch.index = index

    @property
    def finished(self) -> bool:
        for branch in self.branches:  # noqa: SIM110 - asked for at every step: all() would make a generator
            if branch.finish_reason is None:
                return False
        return True

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the request has ended, in one word: the gravest of its branches' reasons."""
        reasons = {branch.finish_reason for branch in self.branches}
        return next((reason for reason in _GRAVEST_FIRST if reason in reasons), None)

    def output(self) -> RequestOutput | None:
        """What the caller is to see now, by the request's ``output_kind``; ``None`` if nothing."""
        kind = self.request.params.output_kind
        finished = self.finished
        if self.silent and not finished:
            return None
        if self.request.params.ranks_branches:
            self._keep_the_best()
        indices = sorted(self.dirty) if kind is RequestOutputKind.DELTA else range(len(self.branches))
        self.dirty.clear()
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self.request.prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=[self.branches[i].take(kind) for i in indices],
            finished=finished,
            num_cached_tokens=self.request.num_cached_tokens,
            error=self.request.error,
            metrics=self.request.metrics,
            prompt_logprobs=self._take_prompt_logprobs(),
        )
