"""Who takes part: each engine with each kind of weights, in which rows, and how it is started for a row.

A variant's rows are grouped by the process that serves them; the runner keeps a process for as long as rows of its group follow.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers import workload
from benchmarks.peers.client import complete_all
from benchmarks.peers.environments import Environments
from benchmarks.peers.limits import ModelSize
from benchmarks.peers.llamacpp import LlamaServer, LlamaTools
from benchmarks.peers.process import Server, Worker, free_port
from benchmarks.peers.rows import LLAMA_CPP, OCTAVO, OPENVINO, TRANSFORMERS, VLLM
from octavo.config import KVDType

BLOCK = 16
KV_TOKENS = {
    "serving": workload.SERVING.num_prompts * -(-(workload.SERVING.input_len + workload.SERVING.output_len) // BLOCK) * BLOCK,
    "context": 81_920,
}
"""Octavo's room for keys and values: over HTTP just what the row needs, since memory is read after it (llama-server gets 32 tokens more
for each request); for long contexts, these and what the repetitions add to them."""
OTHER_KV_TOKENS = 24_576
GGUF = {"fp32": "F32", "int8": "F32"}
"""The file's type where the weights' name is not it."""

IN_PROCESS = ("requests", "decode", "prefill", "samples", "beams", "prefix", "context", "startup")


class Session(Protocol):
    """What is measured. ``pids``: its processes, whose CPU time is its own."""

    @property
    def pids(self) -> tuple[int, ...]: ...
    def measure(self, row: str, rep: int) -> dict[str, float]: ...
    def clear(self) -> None:
        """After a repetition, and outside of what it measures: ends what only that one needed."""

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Setting:
    """What is the same for all variants of a run."""

    environments: Environments
    threads: int
    octavo_kv_dtype: KVDType = "fp16"
    llama_slots: int = 64
    openvino_seqs: int = 64

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """In Octavo's cache."""
        return ModelSize.of(self.environments.model, self.octavo_kv_dtype).kv_bytes_per_token

    def kv_bytes(self, row: str) -> int:
        return KV_TOKENS.get(row, OTHER_KV_TOKENS) * self.kv_bytes_per_token

    def log(self, name: str) -> Path:
        return self.environments.root / "logs" / f"{name}.log"


class OctavoServer(Server):
    """``octavo serve``."""

    def __init__(self, setting: Setting, weights: str) -> None:
        model = setting.environments.gguf(GGUF.get(weights, weights))
        port = free_port()
        command = [sys.executable, "-m", "octavo.cli", "serve", str(model), "--port", str(port), "--served-model-name", "peer"]
        command += ["--num-threads", str(setting.threads), "--kv-cache-dtype", setting.octavo_kv_dtype]
        command += ["--kv-cache-memory-bytes", str(setting.kv_bytes("serving"))]
        super().__init__(command, port, setting.log(f"octavo-server-{weights}"))

    def measure(self, row: str, rep: int) -> dict[str, float]:
        if row == "serving":
            done = complete_all(self.port, workload.serving(rep), workload.SERVING.output_len, "peer", {})
            return {"value": done["out_tok_s"], "time_s": done["time_s"]}
        return {"value": complete_all(self.port, [workload.decode(rep)], 1, "peer", {})["time_s"]}


class Launches:
    """A session of which each repetition is a launch: seconds from the command to the first token of a 32-token prompt.

    What was launched lives until ``clear``: some engines kill their own children as they end, whose CPU time then is nobody's.
    """

    def __init__(self, variant: Variant, setting: Setting) -> None:
        self.variant, self.setting = variant, setting
        self._session: Session | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        return () if self._session is None else self._session.pids

    def measure(self, row: str, rep: int) -> dict[str, float]:
        self.clear()
        launched = time.perf_counter()
        self._session = self.variant.launch(self.setting, "serving" if self.variant.serves else "decode")
        ready_s = time.perf_counter() - launched
        self._session.measure("first_token", rep)
        return {"value": time.perf_counter() - launched, "ready_s": ready_s}

    def clear(self) -> None:
        if self._session is not None:
            self._session.stop()
            self._session = None

    def stop(self) -> None:
        self.clear()


@dataclass(frozen=True)
class Variant:
    """``weights`` as the table names them: ``Q4_1``, ``Q4_0``, ``int8``, ``bf16``, ``fp32``."""

    engine: str
    weights: str
    rows: tuple[str, ...] = IN_PROCESS
    serves: bool = False
    """Whether it has an HTTP server, which then is what is launched for ``startup``."""

    @property
    def key(self) -> str:
        return f"{self.engine} {self.weights}"

    @property
    def environments(self) -> frozenset[str]:
        """The peers' environments that it needs."""
        return {
            OCTAVO: frozenset() if self.weights == "Q4_1" else frozenset({"llamacpp"}),
            LLAMA_CPP: frozenset({"llamacpp"}),
            OPENVINO: frozenset({"openvino", "optimum", "transformers"}),
            VLLM: frozenset({"vllm", "transformers"}),
            TRANSFORMERS: frozenset({"transformers"}),
        }[self.engine]

    def group(self, row: str) -> str:
        """Rows of one group share a session."""
        if row == "startup":
            return "startup"
        if self.engine == LLAMA_CPP:
            return row if row in ("serving", "samples", "prefix") else "tools"
        if self.engine == OCTAVO:
            return row if row in ("serving", "context") else "worker"
        return "worker"

    def open(self, setting: Setting, row: str) -> Session:
        return Launches(self, setting) if row == "startup" else self.launch(setting, row)

    def launch(self, setting: Setting, row: str) -> Session:
        """Starts what serves a row. Raises ``RuntimeError`` (or ``OSError``) if it does not start."""
        environments, threads = setting.environments, setting.threads
        gguf = environments.gguf(GGUF.get(self.weights, self.weights))
        if self.engine == LLAMA_CPP:
            if self.group(row) == "tools":
                return LlamaTools(environments.llama_bin, gguf, threads)
            log = setting.log(f"llama-server-{self.weights}")
            return LlamaServer.for_row(row, environments.llama_bin, gguf, threads, log, setting.llama_slots)
        if self.engine == OCTAVO and row == "serving":
            return OctavoServer(setting, self.weights)
        return self._worker(setting, row, gguf)

    def _worker(self, setting: Setting, row: str, gguf: Path) -> Worker:
        environments, threads = setting.environments, setting.threads
        python, module, settings, environment = Path(sys.executable), "octavo", {}, {}
        if self.engine == OCTAVO:
            settings = {"model": str(gguf), "num_threads": threads, "kv_cache_dtype": setting.octavo_kv_dtype}
            settings |= {"kv_cache_memory_bytes": setting.kv_bytes(row)}
            if self.weights == "int8":
                settings |= {"quantization": "int8-channel"}
        elif self.engine == OPENVINO:
            python, module = environments.python("openvino"), "openvino"
            model = environments.openvino_model("int8" if self.weights == "int8" else "fp32")
            settings = {"model": str(model), "threads": threads, "kv_gib": 2, "precision": "f32" if self.weights == "fp32" else ""}
            settings |= {"max_num_seqs": setting.openvino_seqs, "first_then_rest": True}
        elif self.engine == VLLM:
            python, module, settings = environments.python("vllm"), "vllm", {"model": str(environments.hf_model)}
            environment = self._vllm_environment(setting)
        else:
            python, module = environments.python("transformers"), "transformers"
            settings = {"model": str(environments.hf_model), "threads": threads}
            environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        return Worker(python, f"benchmarks.peers.workers.{module}", settings, setting.log(f"{module}-{self.weights}"), environment)

    @staticmethod
    def _vllm_environment(setting: Setting) -> dict[str, str]:
        """All of the threads' cores (by default it keeps one of two for itself), room for the longest row, no reports home."""
        cores = sorted(os.sched_getaffinity(0))[: setting.threads]
        return {
            "LD_PRELOAD": setting.environments.preload(),
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }


_SERVED = ("serving", *IN_PROCESS)
VARIANTS = (
    Variant(OCTAVO, "Q4_1", _SERVED, serves=True),
    Variant(OCTAVO, "Q4_0", ("requests", "decode", "prefill")),
    Variant(OCTAVO, "int8", ("requests", "decode", "prefill")),
    Variant(OCTAVO, "fp32", _SERVED, serves=True),
    Variant(LLAMA_CPP, "Q4_1", ("serving", "decode", "prefill", "startup"), serves=True),
    Variant(LLAMA_CPP, "Q4_0", ("requests", "decode", "prefill", "samples", "prefix", "context")),
    Variant(LLAMA_CPP, "fp32", ("requests", "serving", "decode", "prefill", "samples", "context"), serves=True),
    Variant(OPENVINO, "int8"),
    Variant(OPENVINO, "fp32"),
    Variant(OPENVINO, "bf16", ("requests", "decode", "prefill", "samples", "beams", "prefix")),
    Variant(VLLM, "fp32", ("requests", "decode", "prefill", "samples", "beams", "prefix", "startup")),
    Variant(TRANSFORMERS, "fp32", ("requests", "decode", "prefill", "samples", "beams", "startup")),
)
"""A row has those who can win it or are named by one of its goals: the whole has to fit into half an hour. llama.cpp's Q4_0 stands for its
Q4_1 where both would do the same, since it is the faster of the two, and has no beam search; ``transformers`` neither pages nor shares.

``int8`` is the fp32 model with a scale for each output of a matrix, OpenVINO's exported so, Octavo's quantised at load.

On CPUs with bf16 instructions OpenVINO computes an fp32 model in bf16 unless told otherwise: that is ``bf16``, and ``fp32`` is told."""


def describe(setting: Setting) -> dict[str, Any]:
    """The settings that figures depend on, for the report."""
    return {
        "threads": setting.threads,
        "octavo_kv_dtype": setting.octavo_kv_dtype,
        "kv_bytes_per_token": setting.kv_bytes_per_token,
        "llama_slots": setting.llama_slots,
        "openvino_seqs": setting.openvino_seqs,
        "model": setting.environments.model.name,
    }
