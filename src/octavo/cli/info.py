"""``octavo info`` and ``octavo --version``: what runs here, on what."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import typer

GIB = 2**30


def version() -> str:
    """The installed package's version, ``unknown`` when run from a source tree that was never installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("octavo")
    except PackageNotFoundError:
        return "unknown"


def print_version(value: bool) -> None:
    if value:
        print(f"octavo {version()}")
        raise typer.Exit()


def cpu_name() -> str:
    """The processor's own name for itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> tuple[int, int]:
    """Bytes of memory (in all, available), the cgroup's limit respected; zeros where the system does not say."""
    total = available = 0
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, value = line.split(":", 1)
            if name == "MemTotal":
                total = int(value.split()[0]) * 1024
            elif name == "MemAvailable":
                available = int(value.split()[0]) * 1024
    except (OSError, ValueError):
        return 0, 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            total = min(total, int(limit))
            available = max(0, min(available, int(limit) - used))
    except (OSError, ValueError):
        pass
    return total, available


def cpu_features() -> list[str]:
    """The vector instructions that matter to language models, as far as this processor has them."""
    wanted = (
        "avx2",
        "fma",
        "f16c",
        "avx_vnni",
        "avx512f",
        "avx512bw",
        "avx512_vnni",
        "avx512_bf16",
        "amx_int8",
        "amx_bf16",
        "asimddp",
        "i8mm",
        "sve",
    )
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                present = set(line.split(":", 1)[1].split())
                return [name for name in wanted if name in present]
    except OSError:
        pass
    return []


def info() -> None:
    """Say what Octavo finds on this machine: its version, the processor, memory, and where models are kept.

    \b
    Examples:
      octavo info
      octavo info | head -n 1                       worth pasting into a bug report
    """
    from octavo.config import available_cores
    from octavo.weights.cache import cache_directory

    total, available = memory_bytes()
    cache = cache_directory()
    models = sorted((p for p in (cache / "models").glob("*") if p.is_dir()), key=lambda p: p.name)
    rows = [
        ("octavo", version()),
        ("python", f"{platform.python_version()} ({platform.system()} {platform.release()}, {platform.machine()})"),
        ("processor", f"{cpu_name()}, {' '.join(cpu_features()) or 'features unknown'}"),
        ("kernels", kernels()),
        ("threads", f"{available_cores()} of {os.cpu_count()} cores may be used"),
        ("memory", f"{available / GIB:.1f} GiB available of {total / GIB:.1f} GiB" if total else "unknown"),
        ("cache", f"{cache}" + (f" ({', '.join(p.name for p in models)})" if models else " (no models yet)")),
    ]
    for name, value in rows:
        print(f"{name:<10} {value}")


def kernels() -> str:
    """The instruction set family whose kernels run here, and the others that could."""
    try:
        from octavo import _native
    except ImportError as error:
        return f"not built ({error})"
    used = _native.select_isa_family(os.environ.get("OCTAVO_ISA", ""))
    others = [name for name in _native.isa_families() if name != used]
    return f"{used} (OCTAVO_ISA can choose {', '.join(others)})" if others else used
