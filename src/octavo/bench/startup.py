"""From the command to the first token, as somebody sees it who types the command: a fresh process each time.

*Cold* is a first start: the packed weights are not in the cache and are left there. *Warm* is every later one. Both have a cache
directory of their own, so the user's is not touched; the model's file itself is in the system's page cache by then, if it fits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from octavo.bench.http import Server
from octavo.bench.serving import Target, ask, only_model
from octavo.bench.workload import BenchRequest

Way = Literal["generate", "serve"]
PROMPT = "The capital of France is"
_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Start:
    """``ready_s``: until the server says where it listens; ``None`` for ``generate``, which only answers."""

    way: Way
    cold: bool
    first_token_s: float
    ready_s: float | None = None


def measure_starts(
    model: Path, ways: Sequence[Way], flags: Sequence[str], iterations: int, *, cold: bool, on_finished: Callable[[], None] = lambda: None
) -> list[Start]:
    """For each iteration and way one cold start (if ``cold``) and a warm one after it. Raises ``RuntimeError`` with what a process said."""
    found = []
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as kept:
        if not cold:
            start("generate", model, flags, Path(kept), cold=True)
        for _ in range(iterations):
            for way in ways:
                with tempfile.TemporaryDirectory(prefix="octavo-bench-") if cold else contextlib.nullcontext(kept) as cache:
                    for is_cold in (True, False) if cold else (False,):
                        found.append(start(way, model, flags, Path(cache), cold=is_cold))
                        on_finished()
    return found


def start(way: Way, model: Path, flags: Sequence[str], cache: Path, *, cold: bool) -> Start:
    """One fresh process, until its first token."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "NO_COLOR": "1"}
    if way == "generate":
        command = ["generate", PROMPT, "--raw", "--model", str(model), "--max-tokens", "2", "--temperature", "0", "--no-stats", *flags]
    else:
        command = ["serve", str(model), "--port", "0", *flags]
    with tempfile.TemporaryFile() as errors:
        began_s = time.perf_counter()
        with _process(command, environment, errors) as process:
            assert process.stdout is not None
            if way == "serve":
                url = _address(process.stdout)
                ready_s = time.perf_counter() - began_s
                if url and not (fault := asyncio.run(_first_token(Server(url)))):
                    return Start(way, cold, time.perf_counter() - began_s, ready_s)
                said = fault if url else ""
            elif os.read(process.stdout.fileno(), 1):
                return Start(way, cold, time.perf_counter() - began_s)
            else:
                said = ""
        errors.seek(0)
        raise RuntimeError(f"octavo {way} gave no token: {said or errors.read().decode(errors='replace').strip()[-500:]}")


@contextlib.contextmanager
def _process(command: Sequence[str], environment: dict[str, str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Interrupted at the end, as by Ctrl-C, and waited for: a cold start leaves its weights behind before it goes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo.cli", *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
    )
    try:
        yield process
    finally:
        try:
            if command[0] == "serve":
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=_PATIENCE_S)
        except BaseException:
            process.kill()
            process.wait()
            raise


def _address(stdout: IO[bytes]) -> str | None:
    """The banner's address of the API; ``None`` if the process ended without one."""
    for line in stdout:
        if match := re.search(rb"API +(http\S+)", line):
            return match[1].decode()
    return None


async def _first_token(server: Server) -> str | None:
    """What went wrong, if anything did."""
    target = Target(server, await only_model(server), timeout_s=_PATIENCE_S)
    record = await ask(target, BenchRequest(PROMPT, 5, 1), time.perf_counter())
    return record.error
