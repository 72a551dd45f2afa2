"""Child processes that are measured: started quietly, waited for until ready, always ended."""

from __future__ import annotations

import atexit
import subprocess
import time
from pathlib import Path

from benchmarks.peers.client import healthy


class Server:
    """An HTTP server on loopback. ``start_s``: seconds from launch until ``/health`` answers 200."""

    def __init__(self, command: list[str], port: int, log: Path, patience_s: float = 120) -> None:
        if healthy(port):
            raise RuntimeError(f"something answers on port {port} already")
        self.command, self.port = command, port
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with log.open("ab") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
        atexit.register(self.stop)
        while not healthy(port):
            if self.process.poll() is not None or time.perf_counter() - started > patience_s:
                self.stop()
                raise RuntimeError(f"{command[0]} did not start; its log is {log}")
            time.sleep(0.01)
        self.start_s = time.perf_counter() - started

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
