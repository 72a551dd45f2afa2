"""Child processes that are measured: started quietly, waited for until ready, always ended, with all of their own children."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.client import healthy


def free_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Child:
    """A process in a group of its own, whose output goes to ``log``. ``launched`` is the moment of its launch (``perf_counter``)."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str], *, piped: bool = False) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.command, self.log = command, log
        self.launched = time.perf_counter()
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else sink,
                stderr=sink,
                text=True,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.pids = (self.process.pid,)
        atexit.register(self.stop)

    def clear(self) -> None:
        """It serves one repetition after the other."""

    def stop(self, patience_s: float = 20) -> None:
        if self.process.poll() is None:
            if self.process.stdin is not None:
                self.process.stdin.close()  # a worker ends when there is nothing more to answer
            else:
                self.process.terminate()
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._signal_group(signal.SIGKILL)
                self.process.wait()
        self._signal_group(signal.SIGKILL)  # children that outlived it
        if self.process.stdout is not None:
            self.process.stdout.close()
        atexit.unregister(self.stop)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Server(Child):
    """An HTTP server on loopback, ready once ``/health`` answers 200. Raises ``RuntimeError`` if it never does."""

    def __init__(
        self, command: list[str], port: int, log: Path, environment: Mapping[str, str] | None = None, patience_s: float = 120
    ) -> None:
        if healthy(port):
            raise RuntimeError(f"something answers on port {port} already")
        super().__init__(command, log, environment or {})
        self.port = port
        while not healthy(port):
            if self.process.poll() is not None or time.perf_counter() - self.launched > patience_s:
                self.stop()
                raise RuntimeError(f"{Path(command[0]).name} did not start; its log is {log}")
            time.sleep(0.01)


class Worker(Child):
    """A process that answers lines of JSON (see ``workers/lines.py``). ``about`` is what it says once it is ready."""

    def __init__(self, python: Path, module: str, settings: Mapping[str, Any], log: Path, environment: Mapping[str, str]) -> None:
        root = str(Path(__file__).parents[2])
        command = [str(python), "-m", module, json.dumps(settings)]
        path = os.pathsep.join([root, environment["PYTHONPATH"]] if "PYTHONPATH" in environment else [root])
        super().__init__(command, log, {**environment, "PYTHONPATH": path}, piped=True)
        self.about = self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(f"the worker ended; its log is {self.log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self, row: str, rep: int) -> dict[str, float]:
        """One repetition of a row. Raises ``RuntimeError`` with the worker's own message."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"row": row, "rep": rep}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise RuntimeError(f"the worker has ended; its log is {self.log}") from error
        answer = self._receive()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer
