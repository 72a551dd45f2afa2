"""``LLM``: the offline API. It steps the engine in the caller's own thread.

from octavo import LLM, SamplingParams

llm = LLM("smollm2-135m-instruct")
for output in llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=8)):
    print(output.outputs[0].text)
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from octavo.config import DEFAULT_MODEL, EngineConfig
from octavo.decoding import BeamSearchParams, RequestOutputKind, SamplingParams
from octavo.engine.handle import EngineHandle
from octavo.engine.likelihood import DEFAULT_WINDOW, LogLikelihood, Perplexity, ScoredPrompt, scored_prompts, text_windows
from octavo.engine.llm_engine import LLMEngine, Prompt, TokensPrompt
from octavo.engine.outputs import RequestOutput
from octavo.text import template_variables

Message = Mapping[str, Any]
"""``{"role": "user", "content": "…"}``."""


ScoredText = str | tuple[str, str] | TokensPrompt
"""A text, a context and its continuation, or token ids."""


class LLM(EngineHandle):
    """``kwargs`` are the fields of ``EngineConfig``. Raises ``ValueError`` for a model or a setting that cannot work."""

    def __init__(self, model: str = DEFAULT_MODEL, *, on_progress: Callable[[int, int], None] | None = None, **kwargs: Any) -> None:
        self.engine = LLMEngine.from_config(EngineConfig.from_kwargs(model=model, **kwargs), on_progress)
        self._counter = itertools.count()
        self._inboxes: dict[str, deque[RequestOutput]] = {}
        """Outputs that have not been read yet, for each request under way: whoever steps the engine moves all of them on."""

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Continues each prompt; outputs come in the order of the prompts.

        A prompt is a string or ``{"prompt_token_ids": [...]}``. ``sampling_params`` is one for all, or one for each;
        without any, the model's own defaults are used (``get_default_sampling_params``).
        ``use_tqdm`` shows a progress bar. Raises ``ValueError`` before anything is computed if any request cannot be
        served. An interrupt (Ctrl-C) frees everything and is raised again.
        """
        batch = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        params = self._params_for(batch, sampling_params)
        return self._run(batch, [replace(p, output_kind=RequestOutputKind.FINAL_ONLY) for p in params], use_tqdm=use_tqdm)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams | Sequence[BeamSearchParams],
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """The best continuations of each prompt, best first, with their ``cumulative_logprob`` and ``score``; otherwise as ``generate``."""
        batch = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        if isinstance(params, BeamSearchParams):
            params = [params] * len(batch)
        elif len(params) != len(batch):
            raise ValueError(f"params has {len(params)} entries for {len(batch)} prompts: give one, or one for each")
        return self._run(batch, params, use_tqdm=use_tqdm)

    def loglikelihood(self, texts: str | Sequence[ScoredText], *, use_tqdm: bool = False) -> list[LogLikelihood]:
        """The log-probability of each text, or of each continuation after its context.

        A text is a string (scored from its second token on, or from its first if the tokenizer puts a beginning-of-sequence token in
        front), a pair ``(context, continuation)``, or ``{"prompt_token_ids": [...]}``. The KV of contexts is found in the prefix
        cache; the numbers are the same bits with and without it. Raises ``ValueError`` for a text that does not fit the context
        length (``perplexity`` reads such texts through windows).
        """
        return self._score(scored_prompts(self.tokenizer, [texts] if isinstance(texts, str) else texts), use_tqdm=use_tqdm)

    def perplexity(
        self, text: str, *, window: int | None = None, stride: int | None = None, on_window: Callable[[int, int], None] | None = None
    ) -> Perplexity:
        """How well the model predicts ``text``, through windows of ``window`` tokens that move on by ``stride``.

        By default 2048 tokens, or what the context or the KV cache holds if that is less, and half of that: each token is seen with at
        least so many before it. ``on_window(done, total)`` is called after each. Raises ``ValueError`` for a size that cannot be.
        """
        most = min(self.max_model_len, self.engine.model.num_blocks * self.engine.scheduler.kv.block_size)
        window = min(DEFAULT_WINDOW, most) if window is None else window
        if not 2 <= window <= most:
            raise ValueError(f"window={window} is invalid: must be between 2 and {most} tokens, what the context and the KV cache hold")
        stride = window // 2 if stride is None else stride
        if not 1 <= stride < window:
            raise ValueError(f"stride={stride} is invalid: must be at least 1 and less than the window of {window} tokens")
        prompts, num_bytes = text_windows(self.tokenizer, text, window, stride)
        done = itertools.count(1)
        told = None if on_window is None else lambda _: on_window(next(done), len(prompts))
        scores = self._score(prompts, use_tqdm=False, on_finished=told)
        return Perplexity(
            math.fsum(score.logprob for score in scores),
            sum(len(score.token_ids) for score in scores),
            num_bytes,
            len(prompts),
            window,
            stride,
        )

    def _score(
        self, prompts: Sequence[ScoredPrompt], *, use_tqdm: bool, on_finished: Callable[[RequestOutput], None] | None = None
    ) -> list[LogLikelihood]:
        """Prompts of which no token is to be scored are not run."""
        asked = [prompt for prompt in prompts if prompt.start < len(prompt.token_ids)]
        batch: list[Prompt] = [{"prompt_token_ids": prompt.token_ids} for prompt in asked]
        outputs = iter(self._run(batch, [prompt.params for prompt in asked], use_tqdm=use_tqdm, on_finished=on_finished))
        return [LogLikelihood.of(p, next(outputs)) if p.start < len(p.token_ids) else LogLikelihood(0.0, True, [], []) for p in prompts]

    def _run(
        self,
        batch: Sequence[Prompt],
        params: Sequence[SamplingParams | BeamSearchParams],
        *,
        use_tqdm: bool,
        on_finished: Callable[[RequestOutput], None] | None = None,
    ) -> list[RequestOutput]:
        request_ids = [f"offline-{next(self._counter)}" for _ in batch]
        waiting = set(request_ids)
        try:
            for request_id, prompt, p in zip(request_ids, batch, params, strict=True):
                self._add(request_id, prompt, p)
            with _Progress(len(batch), enabled=use_tqdm) as progress:
                while waiting:
                    self._step()
                    for request_id in [i for i in waiting if self._inboxes[i]]:
                        waiting.remove(request_id)
                        progress.advance(self._inboxes[request_id][-1])
                        if on_finished is not None:
                            on_finished(self._inboxes[request_id][-1])
            return [self._inboxes[request_id][-1] for request_id in request_ids]
        finally:
            for request_id in request_ids:
                self._drop(request_id)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answers one conversation, or each of several, through the model's chat template."""
        conversations: list[Any] = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        variables = template_variables(chat_template_kwargs or {})
        prompts: list[Prompt] = [
            self.engine.chat_prompt(c, add_generation_prompt=add_generation_prompt, **variables) for c in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yields what is new after each step (``RequestOutputKind.DELTA``). Closing it aborts the request."""
        request_id = f"offline-{next(self._counter)}"
        params = replace(sampling_params or self.get_default_sampling_params(), output_kind=RequestOutputKind.DELTA)
        self._add(request_id, prompt, params)
        inbox = self._inboxes[request_id]
        try:
            finished = False
            while not finished:
                while not inbox:
                    self._step()
                output = inbox.popleft()
                finished = output.finished
                yield output
        finally:
            self._drop(request_id)

    def _add(self, request_id: str, prompt: Prompt, params: SamplingParams | BeamSearchParams) -> None:
        self.engine.add_request(request_id, prompt, params)
        self._inboxes[request_id] = deque()

    def _step(self) -> None:
        for output in self.engine.step():
            self._inboxes[output.request_id].append(output)

    def _drop(self, request_id: str) -> None:
        self.engine.abort_request(request_id)
        self._inboxes.pop(request_id, None)

    def shutdown(self) -> None:
        """Frees the model's memory and threads."""
        self.engine.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _params_for(self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None) -> list[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(f"sampling_params has {len(params)} entries for {len(prompts)} prompts: give one, or one for each")
        return list(params)


class _Progress:
    """A progress bar over requests, with tokens per second."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._enabled = enabled
        self._total = total
        self._num_tokens = 0

    def __enter__(self) -> _Progress:
        if self._enabled:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[speed]}"))
            self._bar.start()
            self._task = self._bar.add_task("Generating", total=self._total, speed="")
        return self

    def advance(self, output: RequestOutput) -> None:
        if self._enabled:
            self._num_tokens += sum(len(branch.token_ids) for branch in output.outputs)
            elapsed_s = self._bar.tasks[0].elapsed or 1e-9
            self._bar.update(self._task, advance=1, speed=f"{self._num_tokens / elapsed_s:.0f} tokens/s")

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._bar.stop()
