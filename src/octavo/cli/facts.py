"""What a loaded engine says about itself, gathered for the banner and the benchmark records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.info import cpu_name, memory_bytes, version
from octavo.config import BLOCK_SIZE, available_cores

if TYPE_CHECKING:
    from octavo.engine.llm_engine import LLMEngine


def weight_formats(path: Path, names: Iterable[str]) -> str:
    """The storage formats of some of a checkpoint's tensors, the one with the most bytes first: ``Q4_1, Q8_0, F32``."""
    from octavo.weights import open_checkpoint

    num_bytes: Counter[str] = Counter()
    tensors = open_checkpoint(path).tensors
    for name in names:
        num_bytes[tensors[name].type.name] += tensors[name].num_bytes
    return ", ".join(name for name, _ in num_bytes.most_common())


def file_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def vocabulary(engine: LLMEngine) -> list[int]:
    """The ids of the model's plain tokens: no control tokens."""
    special = engine.tokenizer.special_ids
    return [i for i in range(engine.tokenizer.vocab_size) if i not in special]


def run_facts() -> dict[str, Any]:
    """Release, date, command and machine: what every measured figure is to be read with."""
    import platform
    import shlex
    import sys
    from datetime import datetime

    return {
        "octavo": version(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["octavo", *sys.argv[1:]]),
        "machine": {
            "cpu": cpu_name(),
            "cores": available_cores(),
            "memory_bytes": memory_bytes()[0],
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
        },
    }


def engine_facts(engine: LLMEngine, path: Path) -> dict[str, Any]:
    """Release, model, weights, instruction set, threads, KV cache: what a measured figure depends on."""
    model, config = engine.model, engine.config
    executable = model.executable
    return {
        "octavo": version(),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "weights": {
            "file": path.name,
            "formats": weight_formats(path, model.program.weights),
            "file_bytes": file_bytes(path),
            "packed_bytes": executable.weight_bytes,
        },
        "backend": config.backend,
        "isa": executable.isa,
        "num_threads": config.threads,
        "machine": {"cpu": cpu_name(), "cores": available_cores()},
        "kv_cache": {
            "dtype": config.kv_cache_dtype,
            "num_blocks": model.num_blocks,
            "num_tokens": model.num_blocks * BLOCK_SIZE,
            "num_bytes": model.num_blocks * executable.kv_block_bytes,
        },
        "max_model_len": engine.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_step_ms": config.max_step_ms,
        "max_slowdown": config.max_slowdown,
        "enable_prefix_caching": config.enable_prefix_caching,
        "load_s": model.load_s,
    }
