"""How much memory this process may still take: the machine's, bounded by its cgroup."""

from __future__ import annotations

from pathlib import Path


def available_memory_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can still be taken without swapping or exceeding the cgroup's limit; ``None`` if unknown.

    Page cache counts as available, in the machine and in the cgroup, since it is given back on demand.
    """
    bounds = []
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            bounds.append(int(line.split()[1]) * 1024)
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        cached = sum(int(line.split()[1]) for line in _read(cgroup / "memory.stat").splitlines() if line.startswith("inactive_file "))
        bounds.append(max(0, int(limit) - int(used) + cached))
    return min(bounds) if bounds else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
