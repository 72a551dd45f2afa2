"""Octavo as it is measured: in process (a child that holds one ``LLM``) and served over HTTP by ``octavo serve``."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import workload
from benchmarks.peers.client import complete_all
from benchmarks.peers.process import Server

KV_CACHE_MEMORY_BYTES = 512 * 2**20
"""Room for 64 sequences of 256 tokens of SmolLM2 in fp16, which is what llama-server is given too."""


class OctavoWorker:
    """A child process with one ``LLM``; commands and answers are lines of JSON over its pipes (see ``worker.py``)."""

    def __init__(self, model: Path, threads: int, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        settings = {"model": str(model), "num_threads": threads, "kv_cache_memory_bytes": KV_CACHE_MEMORY_BYTES}
        command = [sys.executable, "-m", "benchmarks.peers.worker", json.dumps(settings)]
        started = time.perf_counter()
        self._log = log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True)
        atexit.register(self.stop)
        self.about = self._receive()
        self.start_s = time.perf_counter() - started
        self.pids = (self.process.pid,)

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the Octavo worker ended; its log is {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "output_len": output_len}) + "\n")
        self.process.stdin.flush()
        return self._receive()

    def decode(self, rep: int) -> dict[str, float]:
        """Output tokens after the first, per second."""
        answer = self._ask([workload.decode(rep)], workload.DECODE.output_len)
        return {"tok_s": (answer["output_tokens"] - 1) / (answer["finished_s"] - answer["first_token_s"]), **answer}

    def prefill(self, rep: int) -> dict[str, float]:
        """Prompt tokens per second until the first output token is there."""
        answer = self._ask([workload.prefill(rep)], workload.PREFILL.output_len)
        return {"tok_s": workload.PREFILL.input_len / answer["first_token_s"], **answer}

    def serving(self, rep: int) -> dict[str, float]:
        answer = self._ask(workload.serving(rep), workload.SERVING.output_len)
        return {"tok_s": answer["output_tokens"] / answer["time_s"], **answer}

    def stop(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class OctavoServer:
    def __init__(self, model: Path, threads: int, port: int, log: Path) -> None:
        command = [sys.executable, "-m", "octavo.cli", "serve", str(model), "--port", str(port), "--num-threads", str(threads)]
        command += ["--kv-cache-memory-bytes", str(KV_CACHE_MEMORY_BYTES), "--served-model-name", "peer"]
        self.server = Server(command, port, log)
        self.pids = (self.server.process.pid,)

    def serving(self, rep: int) -> dict[str, float]:
        measured = complete_all(self.server.port, workload.serving(rep), workload.SERVING.output_len, "peer", {})
        return {"tok_s": measured["out_tok_s"], **measured}

    def stop(self) -> None:
        self.server.stop()
