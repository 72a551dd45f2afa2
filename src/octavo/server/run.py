"""``serve``: an engine behind uvicorn, from a bound socket to a graceful end.

The order matters. ``bind`` comes before the model is loaded, so that a port in use is known at once; listening comes after, so that
whoever can connect gets answers. On SIGINT or SIGTERM nothing new is accepted, running requests have a grace period, then they are
ended (their streams say so) and their blocks freed; a second signal skips the rest of the grace.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from octavo.engine.async_llm import AsyncLLM
from octavo.server.app import MAX_BODY_BYTES, create_app
from octavo.server.generation import Service
from octavo.server.http import Protocol

logger = logging.getLogger("octavo.server")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
BACKLOG = 2048
KEEP_ALIVE_CONNECTION_S = 75
"""Idle connections are kept this long; clients' pools give up earlier, so that none sends into a closing connection."""
MAX_CONNECTIONS = 4096
SPARE_FILES = 128
"""Of the files that the process may open, what is left for everything but connections."""
LAST_WORDS_S = 3.0
"""After the grace: time for ended streams to say so."""


class ServeError(RuntimeError):
    """The server cannot start; the message is one sentence for people."""


def bind(host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> socket.socket:
    """A TCP socket bound to ``host:port`` (0 picks a free port), not yet listening. Raises ``ServeError``."""
    if not 0 <= port <= 65535:
        raise ServeError(f"port={port} is invalid: it must be between 0 (any free port) and 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ServeError(f"host={host!r} cannot be resolved: {error}") from error
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _refused(host, port, error) from error
    return sock


def _refused(host: str, port: int, error: OSError) -> ServeError:
    if error.errno == errno.EADDRINUSE:
        return ServeError(f"port {port} on {host} is already in use: stop what is running there or choose another with --port")
    if error.errno == errno.EACCES:
        return ServeError(f"port {port} on {host} needs privileges this process lacks: choose one above 1023 with --port")
    return ServeError(f"cannot listen on {host}:{port}: {error.strerror}")


def default_max_connections() -> int:
    """``MAX_CONNECTIONS``, or as many as the process may open files for if that is less."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - SPARE_FILES))


class _Server(uvicorn.Server):
    """Uvicorn's server with a grace period for the requests that run when a signal arrives."""

    def __init__(self, config: uvicorn.Config, service: Service, grace_s: float, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._grace_s = grace_s
        self._on_ready = on_ready
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        assert self._loop is not None
        if self._signals > 1:
            self._service.close()
        else:
            self._loop.call_later(self._grace_s, self._service.close)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1 and self._loop is not None:
            self._loop.call_soon_threadsafe(self._service.close)
        self.should_exit = True


def serve(
    llm: AsyncLLM,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    sock: socket.socket | None = None,
    api_key: str | None = None,
    cors_origins: Sequence[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    max_connections: int | None = None,
    grace_s: float = 5.0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve ``llm`` until SIGINT or SIGTERM, then shut it down. Blocks; to be called in the main thread.

    ``sock`` is a socket from ``bind`` (made before the model was loaded); without it, ``host`` and ``port`` are bound now.
    ``max_connections``: clients beyond that are answered 503; ``None`` goes by the limit of open files.
    ``on_ready`` is called with the server's base URL once it answers. Raises ``ServeError`` when it cannot listen.
    """
    try:
        if sock is None:
            sock = bind(host, port)
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            raise _refused(host, port, error) from error
        url = base_url(host, sock)
        app = create_app(llm, api_key=api_key, cors_origins=cors_origins, max_body_bytes=max_body_bytes)
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            lifespan="on",
            backlog=BACKLOG,
            limit_concurrency=default_max_connections() if max_connections is None else max_connections,
            timeout_keep_alive=KEEP_ALIVE_CONNECTION_S,
            timeout_graceful_shutdown=int(grace_s + LAST_WORDS_S),
        )
        if llm.sampling_defaults:
            spelled = ", ".join(f"{name}={value}" for name, value in llm.sampling_defaults.items())
            logger.info("the model's own sampling defaults: %s (generation_config=none leaves them)", spelled)
        ready = (lambda: on_ready(url)) if on_ready is not None else (lambda: logger.info("serving %s at %s", llm.model_name, url))
        _Server(config, app.state.service, grace_s, ready).run(sockets=[sock])
    finally:
        if sock is not None:
            sock.close()
        llm.shutdown()


def base_url(host: str, sock: socket.socket) -> str:
    """How to reach ``sock`` from this machine; a wildcard address is shown as the loopback one."""
    port = sock.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configure_logging(level: int = logging.INFO) -> None:
    """One readable line per event on stderr, for the ``octavo`` loggers; uvicorn only speaks up when something is wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    for name, least in (("octavo", level), ("uvicorn", logging.WARNING)):
        named = logging.getLogger(name)
        named.handlers[:] = [handler]
        named.setLevel(least)
        named.propagate = False
