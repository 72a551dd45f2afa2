"""``Session``: one conversation with one loaded model: asks, streams the answer to the screen, stops it when told to.

Every prompt is the whole conversation again; the KV blocks of what has been said are found in the prefix cache, so a turn costs what is
new in it. An answer is stopped between two steps of the engine, so its blocks are free before the next line is read.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from octavo.cli.answer import Answer
from octavo.cli.chat.conversation import Conversation, Message, Turn
from octavo.cli.chat.screen import Screen
from octavo.decoding import RequestOutputKind, SamplingParams
from octavo.text import AnswerSplitter, find_thinking, template_variables

if TYPE_CHECKING:
    from octavo.engine.llm_engine import Prompt, TokensPrompt
    from octavo.engine.outputs import RequestOutput
    from octavo.llm import LLM

_TAIL_TOKENS = 32
"""Of a prompt, enough to see whether it ends with the tag that opens the thinking."""


@dataclass
class Totals:
    """Of all answers of a session, taken back or not."""

    num_answers: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_decoded: int = 0
    decode_s: float = 0.0

    def add(self, answer: Answer) -> None:
        self.num_answers += 1
        self.num_tokens += answer.num_tokens
        self.num_prompt_tokens += answer.num_prompt_tokens
        self.num_cached_tokens += answer.num_cached_tokens
        self.num_decoded += max(0, answer.num_tokens - 1)
        self.decode_s += answer.decode_s


class Session:
    """Raises ``ValueError`` for a model without a chat template."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        screen: Screen,
        *,
        system: str | None = None,
        stats: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """``template_kwargs``: more variables for the chat template."""
        if llm.chat_template is None:
            name = llm.engine.model.name
            raise ValueError(f"model {name!r} has no chat template, so it cannot chat: let it continue a text with octavo generate --raw")
        self.llm = llm
        self.screen = screen
        self.conversation = Conversation(system)
        self.totals = Totals()
        self.stats = stats
        self.template_kwargs = template_variables(template_kwargs or {})
        self.interrupted = False
        """Whether the last answer was."""
        self._thinking = find_thinking(llm.chat_template, llm.tokenizer)
        keeps_control = self._thinking is not None and self._thinking.needs_control_tokens
        self.params = replace(params, output_kind=RequestOutputKind.DELTA, skip_special_tokens=not keeps_control)
        self._num_requests = 0

    @property
    def context_length(self) -> int:
        """Tokens, prompt and answer together: the model's, or what the KV cache holds if that is less."""
        engine = self.llm.engine
        return min(engine.max_model_len, engine.model.num_blocks * engine.scheduler.kv.block_size)

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of ``messages`` as a prompt."""
        return len(self._prompt(messages)["prompt_token_ids"])

    def _prompt(self, messages: Sequence[Message]) -> TokensPrompt:
        return self.llm.engine.chat_prompt(messages, **self.template_kwargs)

    def ask(self, question: str) -> None:
        """Adds a turn and streams its answer. What the model has said by an interrupt is kept; a question without any answer is not.

        Raises ``ValueError`` if it cannot be asked, ``KeyboardInterrupt`` at the second interrupt.
        """
        turn = Turn(question)
        self.conversation.turns.append(turn)
        try:
            self._answer(turn)
        finally:
            if turn.answer is None:
                self.conversation.take_back()

    def _answer(self, turn: Turn) -> None:
        limit = self.context_length
        reserve = min(self.params.max_tokens or limit, limit // 4)
        if dropped := self.conversation.fit(self.count, limit, reserve):
            turns = "turn no longer fits" if dropped == 1 else f"{dropped} turns no longer fit"
            self.screen.note(f"[the oldest {turns} the context of {limit:,} tokens; the model does not see what was said there]")
        prompt = self._prompt(self.conversation.shown())
        splitter = self._splitter(prompt["prompt_token_ids"])
        answer = Answer()
        thoughts, words = [], []
        self.interrupted = False
        with _Interrupts() as interrupts:
            try:
                for output in self._stream(prompt, lambda: interrupts.count > 0):
                    text = answer.take(output)
                    thought, word = splitter.push(text, finished=output.finished) if splitter is not None else ("", text)
                    self.screen.think(thought)
                    self.screen.write(word)
                    thoughts.append(thought)
                    words.append(word)
            finally:
                self.interrupted = interrupts.count > 0
                if answer.num_tokens:
                    turn.thinking, turn.answer = "".join(thoughts), "".join(words)
                    self.totals.add(answer)
        self.screen.end()
        if answer.error:
            self.screen.complain(answer.error)
        if turn.answer is None:
            self.screen.note("[stopped before the first word: the question is taken back]")
        elif self.stats:
            self.screen.note(f"[{answer.summary(self.interrupted)}]")

    def _splitter(self, token_ids: Sequence[int]) -> AnswerSplitter | None:
        if self._thinking is None:
            return None
        tail = self.llm.tokenizer.decode(token_ids[-_TAIL_TOKENS:], skip_special_tokens=False)
        return self._thinking.splitter_for(tail)()

    def _stream(self, prompt: Prompt, stop: Callable[[], bool]) -> Iterator[RequestOutput]:
        """``LLM.stream`` that can be stopped at every step, also before the first token, and then gives what had been held back."""
        engine = self.llm.engine
        self._num_requests += 1
        request_id = f"chat-{self._num_requests}"
        engine.add_request(request_id, prompt, self.params)
        try:
            finished = False
            while not finished:
                if stop():
                    last = engine.abort_request(request_id)
                    if last is not None:
                        yield last
                    return
                for output in engine.step():
                    finished = finished or output.finished
                    yield output
        finally:
            engine.abort_request(request_id)


class _Interrupts:
    """Counts SIGINT instead of raising at the first one; the second raises ``KeyboardInterrupt`` wherever it finds the program.

    Outside the main thread, which alone gets signals, it counts nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        try:
            self._before = signal.signal(signal.SIGINT, self._take)
        except ValueError:
            self._before = None
        return self

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
