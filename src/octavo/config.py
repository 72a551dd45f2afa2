"""Frozen configuration, validated once at the edge.

Every field is an argument of ``LLM(...)`` and, with dashes, a flag of ``octavo serve``. An invalid value
raises ``ValueError`` naming the field, the value and what would be right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

KVDType = Literal["fp32", "fp16", "int8"]
BackendName = Literal["native", "reference"]
Quantization = Literal["int8", "int8-channel", "int4"]
GenerationConfig = Literal["auto", "none", "vllm"]

DEFAULT_MODEL = "smollm2-135m-instruct"
MAX_DRAFT_TOKENS = 32
BLOCK_SIZE = 16
"""Tokens a KV block holds. The block layout and the attention kernels are built for this one size."""
_MOST_QUOTED = 100


def quoted(value: object) -> str:
    """``value`` as a message quotes it: its ``repr``, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= _MOST_QUOTED else text[: _MOST_QUOTED - 1] + "…"


def _require(condition: bool, field: str, value: object, hint: str) -> None:
    if not condition:
        raise ValueError(f"{field}={quoted(value)} is invalid: {hint}")


def available_cores(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: its CPU affinity, bounded by the CPU quotas of its cgroup and of those around it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min([cores, *map(round, _cpu_quotas(proc, cgroup))]))


def _cpu_quotas(proc: Path, cgroup: Path) -> Iterator[float]:
    """Cores' worth of time, from cgroups of either version. What a container mounts is its own cgroup, whatever it is called."""
    for line in _read(proc / "self" / "cgroup").splitlines() or ["0::/"]:
        hierarchy, controllers, name = line.split(":", 2)
        if hierarchy != "0" and "cpu" not in controllers.split(","):
            continue
        group = PurePosixPath(name.strip("/"))
        for root in (cgroup, cgroup / "unified") if hierarchy == "0" else (cgroup / controllers, cgroup / "cpu"):
            for directory in [root / part for part in (group, *group.parents) if ".." not in part.parts]:
                new, old = _read(directory / "cpu.max"), [_read(directory / f"cpu.cfs_{part}_us") for part in ("quota", "period")]
                quota = new.split() or " ".join(old).split()
                if len(quota) == 2 and quota[0].isdigit():  # neither "max" nor -1
                    yield int(quota[0]) / int(quota[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that shapes an engine, apart from the model's own hyperparameters.

    ``kv_cache_memory_bytes`` wins over ``memory_fraction``, the share of the memory left to this process
    (its cgroup's limit or the machine's, less what is in use once the weights are loaded) given to the KV
    cache. ``max_model_len=None`` means the model's own context length. ``max_step_ms`` and ``max_slowdown``
    bound a step in time while others read along, so that a long prompt arrives in chunks between their tokens.
    ``kv_cache_dtype="int8"`` keeps keys and values in nearly half the memory of ``fp16``, with a scale for each
    token and head, at a small cost in exactness.
    """

    model: str = DEFAULT_MODEL
    backend: BackendName = "native"
    kv_cache_dtype: KVDType = "fp16"
    kv_cache_memory_bytes: int | None = None
    memory_fraction: float = 0.25
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_step_ms: float = 100.0
    max_slowdown: float = 1.7
    """A step with tokens of a prompt takes at most so many times what it takes without (longer where more prompts than streams wait)."""
    enable_prefix_caching: bool = True
    prompt_lookup_tokens: int = 0
    """Tokens drafted at most in a step from what a sequence holds already: the same output, sooner where it repeats its prompt."""
    num_threads: int | None = None
    seed: int | None = None
    served_model_name: str | None = None
    quantization: Quantization | None = None
    """Quantise float weights at load: ``int8`` or ``int4`` in groups of 32, ``int8-channel`` with one scale for each output: faster with
    many tokens at once, less exact. Weights that are quantised already stay as they are."""
    dequantize: bool = False
    """Expand quantised weights to fp32 at load (a reference for numerics; four times the memory)."""
    generation_config: GenerationConfig = "auto"
    """Where sampling parameters come from that a request leaves out: ``auto`` is the model's own recommendation (temperature, top_p, …),
    then neutral values; ``none``, which vLLM calls ``vllm``, is neutral values alone."""
    weight_cache: bool = True
    """Keep packed weights in the user's cache directory, so that the next start maps or reads them instead of packing."""

    def __post_init__(self) -> None:
        for name in (
            "kv_cache_memory_bytes",
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "num_threads",
            "seed",
            "prompt_lookup_tokens",
        ):
            value = getattr(self, name)
            optional = value is None and not name.startswith(("max_num", "prompt_lookup"))
            _require(optional or (isinstance(value, int) and not isinstance(value, bool)), name, value, "must be an integer")
        for name in ("memory_fraction", "max_step_ms", "max_slowdown"):
            value = getattr(self, name)
            _require(isinstance(value, int | float) and not isinstance(value, bool), name, value, "must be a number")
        _require(bool(self.model), "model", self.model, "name a model alias or a file")
        _require(self.backend in get_args(BackendName), "backend", self.backend, f"choose one of {', '.join(get_args(BackendName))}")
        _require(
            self.kv_cache_dtype in get_args(KVDType), "kv_cache_dtype", self.kv_cache_dtype, f"choose one of {', '.join(get_args(KVDType))}"
        )
        known = get_args(GenerationConfig)
        _require(self.generation_config in known, "generation_config", self.generation_config, f"choose one of {', '.join(known)}")
        if self.quantization is not None:
            _require(
                self.quantization in get_args(Quantization),
                "quantization",
                self.quantization,
                f"choose one of {', '.join(get_args(Quantization))}",
            )
            _require(not self.dequantize, "dequantize", self.dequantize, "quantization asks for the opposite")
        if self.kv_cache_memory_bytes is not None:
            _require(
                self.kv_cache_memory_bytes > 0, "kv_cache_memory_bytes", self.kv_cache_memory_bytes, "must be a positive number of bytes"
            )
        _require(0.0 < self.memory_fraction <= 1.0, "memory_fraction", self.memory_fraction, "must be in (0, 1]")
        if self.max_model_len is not None:
            _require(self.max_model_len >= 2, "max_model_len", self.max_model_len, "must be at least 2 tokens")
        _require(self.max_num_seqs >= 1, "max_num_seqs", self.max_num_seqs, "must be at least 1")
        _require(
            self.max_num_batched_tokens >= self.max_num_seqs,
            "max_num_batched_tokens",
            self.max_num_batched_tokens,
            f"must be at least max_num_seqs ({self.max_num_seqs}), a token for each",
        )
        _require(self.max_step_ms > 0, "max_step_ms", self.max_step_ms, "must be a positive number of milliseconds")
        _require(self.max_slowdown > 1, "max_slowdown", self.max_slowdown, "must be more than 1: at 1 no prompt would ever begin")
        _require(
            0 <= self.prompt_lookup_tokens <= MAX_DRAFT_TOKENS,
            "prompt_lookup_tokens",
            self.prompt_lookup_tokens,
            f"must be between 0 (off) and {MAX_DRAFT_TOKENS}",
        )
        if self.num_threads is not None:
            _require(1 <= self.num_threads <= 256, "num_threads", self.num_threads, "must be between 1 and 256")

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> EngineConfig:
        """Like the constructor, but an unknown name is a ``ValueError`` that lists the known ones."""
        known = {f.name for f in fields(cls)}
        for name in kwargs:
            if name not in known:
                raise ValueError(f"unknown argument {name!r}; known are {', '.join(sorted(known))}")
        return cls(**kwargs)

    @property
    def threads(self) -> int:
        return self.num_threads or available_cores()
