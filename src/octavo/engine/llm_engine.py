"""``LLMEngine``: requests in, steps, outputs out. Synchronous; one thread at a time drives it.

``LLM`` steps it in the caller's own thread, ``AsyncLLM`` in a thread of its own.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any, TypedDict

from octavo.config import EngineConfig, quoted
from octavo.decoding import BeamSearchParams, LogitRules, PromptLookup, SamplingParams
from octavo.engine.beams import RunningBeams
from octavo.engine.loader import LoadedModel, load_model
from octavo.engine.metrics import EngineMetrics
from octavo.engine.model_runner import ChosenToken, ModelRunner, StepResult
from octavo.engine.output_processor import RequestState
from octavo.engine.outputs import FinishReason, RequestMetrics, RequestOutput
from octavo.engine.scheduler import Scheduler
from octavo.engine.scheduler_output import SchedulerOutput
from octavo.engine.sequence import Request, Sequence
from octavo.kv import KVCacheManager

logger = logging.getLogger(__name__)


class TokensPrompt(TypedDict):
    prompt_token_ids: SequenceOf[int]


Prompt = str | TokensPrompt
"""A text, or token ids that are taken as they are."""


class LLMEngine:
    """Raises from ``add_request`` only; a fault within a step ends the request that caused it with ``finish_reason="error"``."""

    def __init__(self, model: LoadedModel, config: EngineConfig) -> None:
        self.model = model
        self.config = config
        self.tokenizer = model.tokenizer
        self.max_model_len = model.program.max_model_len
        self.eos_token_ids = model.tokenizer.eos_token_ids
        kv = KVCacheManager(model.num_blocks, model.executable.options.block_size, enable_prefix_caching=config.enable_prefix_caching)
        self.scheduler = Scheduler(
            kv,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_step_ms=config.max_step_ms,
            max_slowdown=config.max_slowdown,
            max_score_rows=model.executable.options.max_logits_rows - config.max_num_seqs,
        )
        self.runner = ModelRunner(model.executable)
        self.metrics = EngineMetrics(self.scheduler)
        self._states: dict[str, RequestState] = {}
        self._arrivals = 0
        self._seed = config.seed

    @classmethod
    def from_config(cls, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> LLMEngine:
        return cls(load_model(config, on_progress), config)

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._states)

    # -- requests -------------------------------------------------------------------------------------------

    def tokenize(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The prompt's text (if it is one) and its token ids, checked. Raises ``ValueError``."""
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt)
        if not isinstance(prompt, Mapping) or "prompt_token_ids" not in prompt:
            raise ValueError(f'prompt={quoted(prompt)} is invalid: must be a string or {{"prompt_token_ids": [...]}}')
        return None, self._checked_ids(prompt["prompt_token_ids"])

    def chat_prompt(self, messages: SequenceOf[Mapping[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any) -> TokensPrompt:
        """A conversation through the model's chat template; ``kwargs`` go to the template. Raises ``ValueError``."""
        if self.model.chat_template is None:
            raise ValueError(f"model {self.model.name!r} has no chat template: use generate with a plain prompt")
        text = self.model.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **kwargs)
        return {"prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)}

    def add_request(self, request_id: str, prompt: Prompt, params: SamplingParams | BeamSearchParams) -> None:
        """Raises ``ValueError`` naming the field and the value if the request cannot be served."""
        text, token_ids = self.tokenize(prompt)
        self.add_tokenized(request_id, text, token_ids, params)

    def add_tokenized(self, request_id: str, text: str | None, token_ids: list[int], params: SamplingParams | BeamSearchParams) -> None:
        beam, params = (params, params.sampling) if isinstance(params, BeamSearchParams) else (None, params)
        if request_id in self._states:
            raise ValueError(f"request_id={quoted(request_id)} is invalid: a request of that id is under way")
        token_ids = self._truncated(token_ids, params)
        if not token_ids:
            raise ValueError("prompt is empty: it must have at least one token")
        room = self.max_model_len - len(token_ids)
        if room < (0 if params.max_tokens == 0 else 1):
            raise ValueError(
                f"prompt has {len(token_ids)} tokens: the context length is {self.max_model_len}, "
                "of which at least one must be left to generate"
            )
        request = Request(
            request_id=request_id,
            prompt=text,
            prompt_token_ids=token_ids,
            params=params,
            arrival=self._arrivals,
            max_tokens=room if params.max_tokens is None else min(room, params.max_tokens),
            seed=self._seed_of(params),
            metrics=RequestMetrics(time.monotonic()),
            beam=beam,
            rules=self._rules_of(params),
        )
        state = RequestState(request, self.tokenizer, self.eos_token_ids)
        sequence = state.sequences[0] = Sequence(request, 0, self.model.root, self.scheduler.kv.block_size)
        if self.config.prompt_lookup_tokens and beam is None and not params.penalizes and not params.logits_processors:
            sequence.lookup = PromptLookup(self.config.prompt_lookup_tokens)
        if beam is not None:
            state.beams = RunningBeams(request, sequence, self.tokenizer, self.eos_token_ids)
        self.scheduler.add(sequence)
        self._arrivals += 1
        self._states[request_id] = state

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """Ends a request and frees its blocks at once. Returns its last output, ``None`` if it is not under way."""
        state = self._states.get(request_id)
        if state is None:
            return None
        self._end(state, "abort")
        return self._emit(state)

    # -- steps ----------------------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Runs one step and returns what it brought for each request that has something to show."""
        began_s = time.monotonic()
        output = self.scheduler.schedule()
        result = self.runner.run(output)
        now_s = time.monotonic()
        self._count_sharing(output)
        touched: dict[str, RequestState] = {}
        for sequence, error in result.errors.items():
            touched[sequence.request.request_id] = self._fail(sequence, error)
        self._note_first_scheduled(output, began_s)
        self.scheduler.update(output, self._judge_drafts(output, result))
        for sequence in output.preempted:
            if (beams := self._states[sequence.request.request_id].beams) is not None:
                beams.drop()
        for sequence in output.outgrown:
            state = self._states[sequence.request.request_id]
            if sequence.group is not None:
                self._end(state, "length")
            else:
                state.branch(sequence.branch).finish("length")
            self._forget(state, sequence)
            touched[state.request.request_id] = state
        for sequence, scores in result.scored.items():
            self._states[sequence.request.request_id].take_scores(scores)
        for entry in output.scheduled:
            request = entry.sequence.request
            if request.max_tokens == 0 and entry.completes and request.error is None:
                state = touched[request.request_id] = self._states[request.request_id]
                self._end(state, "length")
        for sequence, tokens in result.chosen.items():
            state = self._states[sequence.request.request_id]
            if sequence.request.error is None:
                touched[state.request.request_id] = state
                try:
                    self._take_tokens(state, sequence, tokens, now_s)
                except Exception as error:
                    logger.exception("request %s failed", sequence.request.request_id)
                    self._fail(sequence, f"{type(error).__name__}: {error}")
        self._observe(output, began_s, now_s)
        return [out for state in touched.values() if (out := self._emit(state)) is not None]

    def check_integrity(self) -> None:
        """Recounts every block reference and every living sequence. Raises ``AssertionError``."""
        self.scheduler.check_integrity()
        living = {s for state in self._states.values() for s in state.sequences.values()}
        queued = {*self.scheduler.running, *self.scheduler.waiting}
        assert queued == living, f"sequences {queued ^ living} are scheduled but belong to no request, or the reverse"

    def shutdown(self) -> None:
        """Frees the model's memory and threads."""
        self.model.executable.close()

    # -- how ------------------------------------------------------------------------------------------------

    def _take_tokens(self, state: RequestState, sequence: Sequence, tokens: list[ChosenToken], now_s: float) -> None:
        """Forks the sequence if tokens of several branches were chosen for it, and appends to each branch its own."""
        metrics = self.metrics
        request = sequence.request
        if request.metrics.first_token_s is None:
            request.metrics.first_token_s = now_s
            metrics.time_to_first_token.observe(now_s - request.metrics.arrival_s)
        if state.beams is not None:
            self._grow_beams(state, state.beams, sequence, tokens[0], now_s)
            return
        if len(tokens) > 1:
            for token in tokens[1:]:
                if token.branch != sequence.branch:
                    state.sequences[token.branch] = self.scheduler.fork(sequence, token.branch)
        for token in tokens:
            branch = state.sequences.get(token.branch)
            if branch is None:
                break  # it ended with a token before this one of its draft
            branch.append(token.token_id)
            if branch.last_token_s is not None:
                metrics.inter_token_latency.observe(now_s - branch.last_token_s)
            branch.last_token_s = now_s
            reason = state.branch(token.branch).push(token)
            if reason is not None:
                self.scheduler.finish(branch, reason)
                self._forget(state, branch)
            metrics.generation_tokens.value += 1

    def _grow_beams(self, state: RequestState, beams: RunningBeams, sequence: Sequence, token: ChosenToken, now_s: float) -> None:
        """Once every beam of a search has its candidates, the search takes a step; its last step ends the request."""
        if not beams.take(sequence, token.top):
            return
        last_s = max((s.last_token_s or 0.0 for s in beams.sequences), default=0.0)
        beams.grow(self.scheduler)
        state.sequences = {s.branch: s for s in beams.sequences}
        if last_s:
            self.metrics.inter_token_latency.observe(now_s - last_s)
        for sequence in beams.sequences:
            sequence.last_token_s = now_s
        self.metrics.generation_tokens.value += len(beams.search.beams)
        if beams.search.done:
            self._end(state, "stop")

    def _count_sharing(self, output: SchedulerOutput) -> None:
        """How many blocks the branches of each request would need without sharing, and how many they have."""
        requests = {e.sequence.request.request_id for e in output.scheduled if e.sequence.request.num_branches > 1}
        for state in map(self._states.__getitem__, requests):
            tables = [s.table.ids for s in state.sequences.values()]
            if len(tables) > 1:
                referred = sum(map(len, tables))
                saved = referred - len(set().union(*tables))
                state.request.metrics.branch_block_steps += referred
                state.request.metrics.saved_block_steps += saved
                self.metrics.branch_block_steps.inc(referred)
                self.metrics.saved_block_steps.inc(saved)

    def _end(self, state: RequestState, reason: FinishReason) -> None:
        """Ends all branches of a request, those that never began included."""
        for sequence in list(state.sequences.values()):
            self.scheduler.finish(sequence, reason)
            self._forget(state, sequence)
        state.finish(reason)

    def _fail(self, sequence: Sequence, error: str) -> RequestState:
        """Ends the request of a faulty sequence, and it alone."""
        state = self._states[sequence.request.request_id]
        sequence.request.error = error
        self._end(state, "error")
        return state

    def _forget(self, state: RequestState, sequence: Sequence) -> None:
        state.sequences.pop(sequence.branch, None)

    def _emit(self, state: RequestState) -> RequestOutput | None:
        request = state.request
        if state.finished and self._states.pop(request.request_id, None) is not None:
            request.metrics.finished_s = time.monotonic()
            self.metrics.request_latency.observe(request.metrics.finished_s - request.metrics.arrival_s)
            self.metrics.requests_finished.labels(state.finish_reason).inc()
        return state.output()

    def _note_first_scheduled(self, output: SchedulerOutput, began_s: float) -> None:
        for entry in output.scheduled:
            request = entry.sequence.request
            if request.metrics.first_scheduled_s is None:
                request.metrics.first_scheduled_s = began_s
                self.metrics.prompt_tokens.inc(len(request.prompt_token_ids))
                self.metrics.cached_prompt_tokens.inc(request.num_cached_tokens)

    def _judge_drafts(self, output: SchedulerOutput, result: StepResult) -> dict[Sequence, int]:
        """How many of its drafted tokens each sequence chose itself."""
        num_accepted: dict[Sequence, int] = {}
        for entry in output.scheduled:
            if entry.draft and entry.sequence.lookup is not None:
                accepted = num_accepted[entry.sequence] = max(0, len(result.chosen.get(entry.sequence, ())) - 1)
                entry.sequence.lookup.observe(len(entry.draft), accepted)
                self.metrics.draft_tokens.inc(len(entry.draft))
                self.metrics.accepted_draft_tokens.inc(accepted)
        return num_accepted

    def _observe(self, output: SchedulerOutput, began_s: float, now_s: float) -> None:
        if not output.scheduled:
            return
        num_tokens = output.num_tokens
        self.scheduler.step_time.observe(1e3 * (now_s - began_s), num_tokens, output.prompt_chunks)
        self.metrics.steps.value += 1
        self.metrics.step_seconds.value += now_s - began_s
        self.metrics.computed_tokens.value += num_tokens

    def _seed_of(self, params: SamplingParams) -> int:
        if params.seed is not None:
            return params.seed % 2**64
        if self._seed is not None:
            return (self._seed + self._arrivals) % 2**64
        return secrets.randbits(64)

    def _rules_of(self, params: SamplingParams) -> LogitRules:
        return LogitRules(
            params,
            eos_token_ids=self.eos_token_ids,
            vocab_size=self.model.program.vocab_size,
            encode=lambda text: self.tokenizer.encode(text, add_special_tokens=False),
        )

    def _truncated(self, token_ids: list[int], params: SamplingParams) -> list[int]:
        keep = params.truncate_prompt_tokens
        if keep is None:
            return token_ids
        return token_ids[-(keep if keep > 0 else max(1, self.max_model_len - (params.max_tokens or 1))) :]

    def _checked_ids(self, token_ids: SequenceOf[int]) -> list[int]:
        if isinstance(token_ids, str | bytes) or not isinstance(token_ids, Iterable):
            raise ValueError(f"prompt_token_ids={quoted(token_ids)} is invalid: must be a list of token ids")
        ids = list(token_ids)
        vocab_size = self.model.program.vocab_size
        for i, token in enumerate(ids):
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
                raise ValueError(f"prompt_token_ids[{i}]={quoted(token)} is invalid: must be a token id between 0 and {vocab_size - 1}")
        return ids
