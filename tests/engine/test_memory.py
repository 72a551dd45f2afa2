"""What the machine and the cgroup leave, read from files laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.engine.memory import available_memory_bytes

GIB = 1 << 30


def machine(root: Path, available_kib: int, **cgroup: str) -> tuple[Path, Path]:
    proc, group = root / "proc", root / "cgroup"
    proc.mkdir()
    group.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_kib} kB\n")
    for name, text in cgroup.items():
        (group / f"memory.{name}").write_text(text)
    return proc, group


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ({}, 8 * GIB),
        ({"max": "max\n", "current": "123\n"}, 8 * GIB),
        ({"max": f"{4 * GIB}\n", "current": f"{GIB}\n"}, 3 * GIB),
        ({"max": f"{4 * GIB}\n", "current": f"{3 * GIB}\n", "stat": f"anon 5\ninactive_file {2 * GIB}\n"}, 3 * GIB),
        ({"max": f"{GIB}\n", "current": f"{2 * GIB}\n"}, 0),
    ],
)
def test_the_tighter_bound_counts_and_page_cache_is_free(tmp_path: Path, cgroup: dict[str, str], expected: int) -> None:
    assert available_memory_bytes(*machine(tmp_path, 8 << 20, **cgroup)) == expected


def test_nothing_known(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path, tmp_path) is None
