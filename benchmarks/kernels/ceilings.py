"""What this machine can do at most: ``limits.cpp`` beside this file, compiled and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "limits.cpp"


def build(build_dir: Path) -> Path:
    """The program. Raises ``OSError`` or ``CalledProcessError``."""
    compiler = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "c++")
    build_dir.mkdir(parents=True, exist_ok=True)
    program = build_dir / "limits"
    subprocess.run([compiler, "-O2", "-std=c++20", "-pthread", str(SOURCE), "-o", str(program)], check=True, capture_output=True, text=True)
    return program


def run(program: Path, threads: int) -> dict[str, float]:
    """``read_gb_s``, ``float_gflops``, ``int8_gops`` and others of that many threads. Raises ``OSError`` or ``CalledProcessError``."""
    done = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def measure(build_dir: Path, threads: int) -> dict[str, float]:
    return run(build(build_dir), threads)


def best(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Of two measurements: a ceiling is what was reached at least once."""
    return {name: max(value, other.get(name, value)) for name, value in one.items()}


def of_family(measured: dict[str, float], isa: str) -> dict[str, float]:
    """The ceilings of kernels that stay below AVX-512: what AVX2's instructions reach."""
    if isa == "avx512":
        return measured
    int8 = max(measured["avx2_int8_gops"], measured["avx2_int4_gops"])
    return {**measured, "float_gflops": measured["avx2_float_gflops"], "int8_gops": int8}
