"""A real server process with the real model, and what tests ask of it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai

MODEL = "smollm2-135m-instruct"
MAX_MODEL_LEN = 2048
START_S = 120.0

_READY = re.compile(r"serving \S+ at (http://\S+)")


class ServerProcess:
    """``python -m octavo.server`` on a free loopback port. Raises ``AssertionError`` with its log if it does not come up.

    ``prelude`` is Python that the process runs first, to break something in it.
    """

    def __init__(self, log: Path, *flags: str, prelude: str | None = None) -> None:
        self._log = log
        self.http = httpx.Client(timeout=60)
        start = ["-m", "octavo.server"]
        if prelude is not None:
            start = ["-c", f"{prelude}\nimport sys\nfrom octavo.server.__main__ import main\nsys.exit(main(sys.argv[1:]))"]
        options = ["--port", "0", "--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-memory-bytes", str(320 << 20), *flags]
        with log.open("wb") as sink:
            self.process = subprocess.Popen([sys.executable, *start, *options], stderr=sink, stdout=sink)
        self.url = self._wait_until_ready()

    def _wait_until_ready(self) -> str:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            if found := _READY.search(self.log):
                return found.group(1)
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"the server was not ready within {START_S} s:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def client(self, **kwargs: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=180, **kwargs)  # type: ignore[arg-type]

    def metric(self, name: str) -> float:
        """The value of an unlabelled metric."""
        text = self.http.get(f"{self.url}/metrics").text
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"no metric {name} in\n{text}"
        return float(found.group(1))

    def blocks_in_use(self) -> int:
        return int(self.metric("octavo_kv_blocks_in_use"))

    def wait_until_idle(self, within_s: float = 5.0) -> None:
        """Every block is free again within the time that a few steps take."""
        deadline_s = time.monotonic() + within_s
        while (used := self.blocks_in_use()) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert used == 0, f"{used} blocks are still in use\n{self.log[-4000:]}"

    def stop(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def running_server(log: Path, *flags: str, prelude: str | None = None) -> Iterator[ServerProcess]:
    server = ServerProcess(log, *flags, prelude=prelude)
    try:
        yield server
    finally:
        server.stop()
