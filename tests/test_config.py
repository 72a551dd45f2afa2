"""Configuration is refused by field, value and what would be right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from octavo import EngineConfig
from octavo.config import available_cores


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""), ("backend", "gpu"), ("kv_cache_dtype", "int3"), ("kv_cache_memory_bytes", 0), ("memory_fraction", 0.0),
        ("memory_fraction", 1.5), ("max_model_len", 1), ("max_num_seqs", 0), ("max_num_batched_tokens", 63), ("max_step_ms", 0),
        ("max_slowdown", 1), ("max_slowdown", 0.5), ("max_slowdown", "2"),
        ("num_threads", 0), ("num_threads", 257),
        ("quantization", "int2"), ("max_num_seqs", "4"), ("max_num_seqs", 1.5), ("kv_cache_memory_bytes", "1G"), ("seed", "x"),
    ],
)  # fmt: skip
def test_invalid_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        EngineConfig(**{field: value})


def test_an_unknown_argument_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'max_seqs'.*max_num_seqs"):
        EngineConfig.from_kwargs(max_seqs=3)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 12),
        ("0::/", {"cpu.max": "max 100000"}, 12),
        ("0::/", {"cpu.max": "350000 100000"}, 4),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/pods/one", {"cpu.max": "900000 100000", "pods/cpu.max": "300000 100000", "pods/one/cpu.max": "max 100000"}, 3),
        ("0::/pods/one", {"pods/cpu.max": "700000 100000", "pods/one/cpu.max": "500000 100000", "other/cpu.max": "100000 100000"}, 5),
        ("0::/seen/from/outside", {"cpu.max": "200000 100000"}, 2),
        ("0::/../neighbour", {"cpu.max": "600000 100000", "../neighbour/cpu.max": "100000 100000"}, 6),
        ("2:memory:/\n1:cpu,cpuacct:/docker/x\n0::/", {
            "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "50000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000", "unified/cpu.max": "max 100000"}, 2),
        ("5:cpuset:/x", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 12),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_affinity_within_all_quotas(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/{name}": text for name, text in files.items()}}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n" if text else "")
    assert available_cores(tmp_path / "proc", tmp_path / "sys/fs") == expected


def test_threads_default_to_the_cores_there_are() -> None:
    assert EngineConfig().threads >= 1
    assert EngineConfig(num_threads=3).threads == 3
