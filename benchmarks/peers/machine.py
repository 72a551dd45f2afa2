"""What the machine was doing: CPU time of our processes and of everybody else's, peak memory, a wait for quiet.

Figures come from ``/proc``. One busy neighbour slows an engine several times over, so a repetition during which other processes
took more than ``MAX_OTHER_CPU`` of the machine is measured again.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_OTHER_CPU = 0.04
UNCERTAIN_JIFFIES = 2
"""CPU time is counted in ticks, late by up to one for each of two readings: less than this is no sign of others."""


def cpu_jiffies() -> tuple[int, int]:
    """Jiffies of the whole machine since boot: (busy, all)."""
    values = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def process_tree(pids: Iterable[int]) -> set[int]:
    """``pids`` and all their living descendants."""
    seen: set[int] = set()
    todo = list(pids)
    while todo:
        pid = todo.pop()
        if pid in seen:
            continue
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        seen.add(pid)
    return seen


def jiffies(pid: int) -> int:
    """CPU time of a process and of the children that it has waited for; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(v) for v in fields[11:15])


def tree_jiffies(pids: Iterable[int]) -> int:
    """CPU time of the processes, their descendants and the children that they have waited for."""
    return sum(jiffies(pid) for pid in process_tree(pids))


def peak_memory_mib(pids: Iterable[int]) -> float:
    """Sum of the peak resident sizes of the processes and their descendants."""
    kib = 0
    for pid in process_tree(pids):
        try:
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    kib += int(line.split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return kib / 1024


def wait_for_quiet(limit: float = 0.05, patience_s: int = 25) -> bool:
    """Waits until the machine is nearly idle for a second; ``False`` if it never was within ``patience_s``."""
    for _ in range(patience_s):
        busy0, all0 = cpu_jiffies()
        time.sleep(1.0)
        busy1, all1 = cpu_jiffies()
        if (busy1 - busy0) / max(1, all1 - all0) <= limit:
            return True
    return False


@dataclass
class Watch:
    """Measures the share of the machine taken by others than this process, what it has run to its end, and ``pids`` with descendants.

    Engines that wait for their turn are children of this process too, and count as others: one that spins while it waits is a neighbour.
    """

    pids: Callable[[], tuple[int, ...]] = tuple
    """Asked when the watch begins and when it ends: what is launched in between is measured too, as long as it lives."""

    def start(self) -> None:
        self._busy, self._all = cpu_jiffies()
        self._ours = self._own_jiffies()

    def other_cpu(self) -> float:
        busy, total = cpu_jiffies()
        others = (busy - self._busy) - (self._own_jiffies() - self._ours) - UNCERTAIN_JIFFIES
        return max(0, others) / max(1, total - self._all)

    def _own_jiffies(self) -> int:
        return jiffies(os.getpid()) + tree_jiffies(self.pids())


def describe() -> dict[str, str | int | float]:
    """The machine, for the report."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
