"""llama.cpp as a peer: built natively from the source in the ``llama-cpp-python`` sdist, driven by its own tools.

``llama-bench`` measures decode and prefill, ``llama-server`` the served load. It gets what makes it fastest here: a native build,
both cores for prompts too, its own choice of flash attention, greedy sampling without the other samplers, no prompt cache to search,
and the number of slots that a first sweep found best.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.peers import workload
from benchmarks.peers.client import complete_all
from benchmarks.peers.process import Server

VERSION = "0.3.36"
TOOLS = ("llama-bench", "llama-server")
GREEDY = {"cache_prompt": False, "samplers": ["top_k"], "top_k": 1}


def ensure_built(peers: Path, jobs: int) -> Path:
    """The folder with llama.cpp's tools, built below ``peers`` on first use (about ten minutes on two cores)."""
    build = peers / "llamacpp" / "build"
    if all((build / "bin" / tool).exists() for tool in TOOLS):
        return build / "bin"
    downloads = peers / "dl"
    downloads.mkdir(parents=True, exist_ok=True)
    sdist = downloads / f"llama_cpp_python-{VERSION}.tar.gz"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if not sdist.exists():
        _run([*pip, "download", "--no-deps", "--no-binary", ":all:", "-d", str(downloads), f"llama-cpp-python=={VERSION}"])
    source = downloads / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
    if not source.exists():
        with tarfile.open(sdist) as archive:
            archive.extractall(downloads, filter="data")
    if not (shutil.which("cmake") and shutil.which("ninja")):
        _run([*pip, "install", "--quiet", "cmake", "ninja"])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    off = ["LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_UI", "LLAMA_BUILD_APP"]
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
    _run([*configure, *(f"-D{name}=OFF" for name in off)], path)
    _run(["ninja", "-C", str(build), f"-j{jobs}", *TOOLS], path)
    return build / "bin"


def _run(command: list[str], path: str | None = None) -> None:
    print("+", " ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **({"PATH": path} if path else {})})


def version(bin_dir: Path) -> str:
    done = subprocess.run([bin_dir / "llama-server", "--version"], capture_output=True, text=True, check=True)
    return (done.stderr or done.stdout).strip().splitlines()[0].removeprefix("version: ")


class LlamaBench:
    """One run of ``llama-bench`` per repetition; it loads the model and warms up outside what it times."""

    def __init__(self, bin_dir: Path, model: Path, threads: int) -> None:
        self.command = [str(bin_dir / "llama-bench"), "-m", str(model), "-t", str(threads), "-r", "1", "-o", "json"]
        self.pids: tuple[int, ...] = ()

    def _rate(self, n_prompt: int, n_gen: int) -> dict[str, float]:
        command = [*self.command, "-p", str(n_prompt), "-n", str(n_gen)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        [row] = json.loads(done.stdout)
        return {"tok_s": float(row["avg_ts"])}

    def decode(self, rep: int) -> dict[str, float]:
        return self._rate(0, workload.DECODE.output_len)

    def prefill(self, rep: int) -> dict[str, float]:
        return self._rate(workload.PREFILL.input_len, 0)


class LlamaServer:
    def __init__(self, bin_dir: Path, model: Path, threads: int, parallel: int, port: int, log: Path) -> None:
        tokens = parallel * (workload.SERVING.input_len + workload.SERVING.output_len + 32)
        command = [str(bin_dir / "llama-server"), "-m", str(model), "-t", str(threads), "-tb", str(threads), "-c", str(tokens)]
        command += ["-np", str(parallel), "--host", "127.0.0.1", "--port", str(port), "--no-ui", "-cram", "0"]
        self.server = Server(command, port, log)
        self.pids = (self.server.process.pid,)

    def serving(self, rep: int) -> dict[str, float]:
        measured = complete_all(self.server.port, workload.serving(rep), workload.SERVING.output_len, "peer", GREEDY)
        return {"tok_s": measured["out_tok_s"], **measured}

    def stop(self) -> None:
        self.server.stop()


def best_parallel(
    bin_dir: Path, model: Path, threads: int, port: int, log: Path, candidates: tuple[int, ...]
) -> tuple[int, dict[str, float]]:
    """Runs the served load once with each number of slots; the fastest, and all the rates."""
    rates: dict[str, float] = {}
    for parallel in candidates:
        server = LlamaServer(bin_dir, model, threads, parallel, port, log)
        try:
            rates[str(parallel)] = server.serving(workload.WARM_UP + parallel)["tok_s"]
        finally:
            server.stop()
        print(f"  llama-server with {parallel} slots: {rates[str(parallel)]:.1f} tok/s", file=sys.stderr, flush=True)
    return int(max(rates, key=lambda key: rates[key])), rates
