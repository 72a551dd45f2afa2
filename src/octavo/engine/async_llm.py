"""``AsyncLLM``: the engine for servers. One thread steps it; any number of coroutines stream from it.

Coroutines put commands (add, abort) into a queue that the thread empties between steps; the thread hands all outputs of
a step to an event loop in one call. Nothing is shared otherwise, so nothing is locked.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import sys
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from prometheus_client import CollectorRegistry

from octavo.config import DEFAULT_MODEL, EngineConfig, quoted
from octavo.decoding import BeamSearchParams, RequestOutputKind, SamplingParams
from octavo.engine.handle import EngineHandle
from octavo.engine.llm_engine import LLMEngine, Prompt
from octavo.engine.outputs import RequestOutput

logger = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.0005
"""How long a Python thread may keep the interpreter from one that wants it: the engine thread must not wait for others."""
_INLINE_PROMPT_CHARS = 2048
"""Longer prompts are tokenised off the event loop."""


class EngineDeadError(RuntimeError):
    """The engine thread has ended by an error of its own; every request fails until the process is restarted."""


class _Stream:
    """The outputs of one request on their way to the coroutine that reads them.

    Cumulative outputs replace each other while nobody reads, so that a slow reader costs no memory.
    """

    __slots__ = ("_arrived", "_items", "_replace", "loop", "request_id")

    def __init__(self, request_id: str, params: SamplingParams | BeamSearchParams) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self._items: deque[RequestOutput | Exception] = deque()
        self._arrived = asyncio.Event()
        self._replace = params.output_kind is RequestOutputKind.CUMULATIVE

    def put(self, item: RequestOutput | Exception) -> None:
        if isinstance(item, RequestOutput):
            item.request_id = self.request_id
            if self._replace:
                self._items.clear()
        self._items.append(item)
        self._arrived.set()

    async def get(self) -> RequestOutput | Exception:
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        return self._items.popleft()


class AsyncLLM(EngineHandle):
    """``kwargs`` are the fields of ``EngineConfig``. Use it as a context manager, or call ``shutdown``."""

    def __init__(self, model: str = DEFAULT_MODEL, *, on_progress: Callable[[int, int], None] | None = None, **kwargs: Any) -> None:
        self._setup(LLMEngine.from_config(EngineConfig.from_kwargs(model=model, **kwargs), on_progress))

    @classmethod
    def from_engine(cls, engine: LLMEngine) -> AsyncLLM:
        """Over an engine that is loaded already and that nobody else drives."""
        llm = object.__new__(cls)
        llm._setup(engine)
        return llm

    def _setup(self, engine: LLMEngine) -> None:
        self.engine = engine
        self.error: BaseException | None = None
        self._streams: dict[str, _Stream] = {}
        """By key: the engine's own name of a request, never used twice, while ids are the callers' to choose and reuse."""
        self._keys: dict[str, str] = {}
        """From the ids of requests under way to their keys."""
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._counter = itertools.count()
        self._old_switch_interval_s = sys.getswitchinterval()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._accepting = True
        self.start()

    @property
    def model_name(self) -> str:
        return self.engine.model.name

    @property
    def system_fingerprint(self) -> str:
        """Build, instruction set, weights and KV dtype: within one fingerprint, the same request gives the same bits."""
        return self.engine.model.fingerprint

    @property
    def registry(self) -> CollectorRegistry:
        return self.engine.metrics.registry

    @property
    def is_running(self) -> bool:
        return self._accepting

    # -- requests -------------------------------------------------------------------------------------------

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | BeamSearchParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Yields outputs as ``sampling_params.output_kind`` says, the last one with ``finished`` set.

        Closing or cancelling it aborts the request and frees its blocks within one step. Raises ``ValueError`` for a
        request that cannot be served, ``EngineDeadError`` if the engine has failed.
        """
        params = sampling_params or self.get_default_sampling_params()
        text, token_ids = await self._tokenize(prompt)
        key = f"{request_id or 'req'}#{next(self._counter)}"
        request_id = request_id or key
        stream = _Stream(request_id, params)
        if self._keys.setdefault(request_id, key) != key:
            raise ValueError(f"request_id={quoted(request_id)} is invalid: a request of that id is under way")
        self._streams[key] = stream
        finished = not self._accepting  # looked at after the stream is there: from now on the thread tells it when it ends
        try:
            if finished:
                raise self._dead()
            self._commands.put(lambda: self._add(key, text, token_ids, params))
            while not finished:
                item = await stream.get()
                if isinstance(item, Exception):
                    finished = True
                    raise item
                finished = item.finished
                yield item
        finally:
            del self._streams[key]
            del self._keys[request_id]
            if not finished:
                self._commands.put(lambda: self._abort(key))

    async def beam_search(self, prompt: Prompt, params: BeamSearchParams, request_id: str | None = None) -> RequestOutput:
        """The best texts, best first. Cancelling it, and what it raises: as ``generate``."""
        async with aclosing(cast(AsyncGenerator[RequestOutput, None], self.generate(prompt, params, request_id))) as outputs:
            return [output async for output in outputs][-1]

    async def abort(self, request_id: str) -> None:
        """Ends a request; its stream gets a last output with ``finish_reason="abort"``. Unknown ids are ignored."""
        if (key := self._keys.get(request_id)) is not None:
            self._commands.put(lambda: self._abort(key))

    async def encode(self, texts: list[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text; long texts are tokenised without holding up the event loop."""
        if sum(map(len, texts)) <= _INLINE_PROMPT_CHARS:
            return [self.tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        return await asyncio.to_thread(self.tokenizer.encode_batch, texts, add_special_tokens=add_special_tokens)

    # -- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the engine thread (the constructor has done so already)."""
        if self._thread is None:
            sys.setswitchinterval(_SWITCH_INTERVAL_S)
            self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
            self._thread.start()

    def shutdown(self) -> None:
        """Ends every request with ``finish_reason="abort"``, stops the thread and frees the model. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join()
        sys.setswitchinterval(self._old_switch_interval_s)
        self.engine.shutdown()

    def __enter__(self) -> AsyncLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # -- the engine thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._obey_commands():
                self._deliver(self.engine.step())
            self._deliver([out for key in list(self._streams) if (out := self.engine.abort_request(key)) is not None])
        except BaseException as error:
            logger.exception("the engine has failed")
            self.error = error
        finally:
            self._accepting = False
            for key, stream in list(self._streams.items()):
                self._post(stream.loop, [(key, self._dead())])

    def _obey_commands(self) -> bool:
        """Empties the command queue, waiting for a command while there is nothing to compute. False: stop."""
        while True:
            try:
                command = self._commands.get(block=not self.engine.has_unfinished_requests)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _add(self, key: str, text: str | None, token_ids: list[int], params: SamplingParams | BeamSearchParams) -> None:
        try:
            self.engine.add_tokenized(key, text, token_ids, params)
        except Exception as error:
            if (stream := self._streams.get(key)) is not None:
                self._post(stream.loop, [(key, error)])

    def _abort(self, key: str) -> None:
        if (output := self.engine.abort_request(key)) is not None:
            self._deliver([output])

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[str, RequestOutput | Exception]]] = defaultdict(list)
        for output in outputs:
            if (stream := self._streams.get(output.request_id)) is not None:
                by_loop[stream.loop].append((output.request_id, output))
        for loop, items in by_loop.items():
            self._post(loop, items)

    def _post(self, loop: asyncio.AbstractEventLoop, items: list[tuple[str, RequestOutput | Exception]]) -> None:
        try:
            loop.call_soon_threadsafe(self._dispatch, items)
        except RuntimeError:  # the loop is closed: nobody reads these any more
            for key, _ in items:
                self._commands.put(lambda key=key: self._abort(key))  # type: ignore[misc]

    def _dispatch(self, items: list[tuple[str, RequestOutput | Exception]]) -> None:
        """On the event loop."""
        for key, item in items:
            if (stream := self._streams.get(key)) is not None:
                stream.put(item)

    async def _tokenize(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str) and len(prompt) > _INLINE_PROMPT_CHARS:
            return prompt, (await self.encode([prompt]))[0]
        return self.engine.tokenize(prompt)

    def _dead(self) -> EngineDeadError:
        reason = f"it failed with {type(self.error).__name__}: {self.error}" if self.error else "it has been shut down"
        return EngineDeadError(f"the engine is not running: {reason}")
