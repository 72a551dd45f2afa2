"""Loading a large model never holds it twice, nor once in memory that the system could not take back.

A model of 120 MB is treated as a large one and loaded in a process of its own, which watches its memory all the while. Mapped pages
of files are the system's to drop; anonymous ones are not, so it is these that must stay small. The mapped ones together may not
exceed the packed model and what is in the works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

LAYERS, HIDDEN, FFN, VOCAB = 6, 1024, 2560, 2048
MIB = 1 << 20

LOAD = """
import json, sys, threading
from pathlib import Path
import octavo.backends.native.executable as executable
from octavo.backends.base import CompileOptions
from octavo.backends.native import NativeBackend, PackedCache
from octavo.models import build_program
from octavo.weights import open_checkpoint, quantized

path, directory, quantization, cached = sys.argv[1:]
executable.RELEASE_FROM_BYTES = 1
memory = {"anonymous": 0, "file": 0}

def usage():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Rss"))
    return {"anonymous": int(fields["RssAnon"].split()[0]) << 10, "file": int(fields["RssFile"].split()[0]) << 10}

before, done = usage(), threading.Event()
original = checkpoint = open_checkpoint(Path(path))
if quantization:
    checkpoint = quantized(checkpoint, quantization)
program = build_program(checkpoint)
cache = None
if cached == "yes":
    cache = PackedCache(Path(path), "s", checkpoint.fingerprint, directory=Path(directory), map_from_bytes=1)

def watch():
    while not done.wait(0.002):
        for kind, value in usage().items():
            memory[kind] = max(memory[kind], value - before[kind])

watcher = threading.Thread(target=watch)
watcher.start()
exe = NativeBackend(cache, original.tensors).compile(program, checkpoint.tensors, CompileOptions(16, "fp16", 64, 8, 64, 2))
done.set()
watcher.join()
memory["weights"] = exe.weight_bytes
print(json.dumps(memory))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in fp16."""
    path = tmp_path_factory.mktemp("model") / "medium.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    noise = np.random.default_rng(0).normal(0, 0.02, FFN * HIDDEN).astype(np.float16)

    def add(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, noise[: rows * columns].reshape(rows, columns))

    add("token_embd.weight", VOCAB, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", HIDDEN, HIDDEN)
        add(f"blk.{i}.ffn_gate.weight", FFN, HIDDEN)
        add(f"blk.{i}.ffn_up.weight", FFN, HIDDEN)
        add(f"blk.{i}.ffn_down.weight", HIDDEN, FFN)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(model: Path, directory: Path, quantization: str = "", cached: bool = True) -> dict[str, int]:
    arguments = [sys.executable, "-c", LOAD, str(model), str(directory), quantization, "yes" if cached else "no"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(directory / "cache")}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


def test_packing_goes_from_the_file_into_the_file(model: Path, tmp_path: Path) -> None:
    first = load(model, tmp_path)
    assert first["weights"] > 100 * MIB
    assert first["anonymous"] < 16 * MIB
    assert first["file"] < first["weights"] + 24 * MIB, "pages of what has been packed stayed"
    again = load(model, tmp_path)
    assert again["anonymous"] < 16 * MIB
    assert again["file"] < again["weights"] + 8 * MIB


def test_without_a_cache_the_model_is_held_once(model: Path, tmp_path: Path) -> None:
    measured = load(model, tmp_path, cached=False)
    assert measured["anonymous"] < measured["weights"] + 16 * MIB
    assert measured["file"] < 24 * MIB
    assert list(tmp_path.glob("*.packed")) == []


def test_quantising_takes_one_tensor_at_a_time(model: Path, tmp_path: Path) -> None:
    measured = load(model, tmp_path, "int8")
    tensor_in_fp32 = 4 * FFN * HIDDEN
    assert measured["anonymous"] < 8 * tensor_in_fp32 < measured["weights"] * 2
    assert measured["file"] < model.stat().st_size + 24 * MIB, "what has been quantised stayed"
    again = load(model, tmp_path, "int8")
    assert again["anonymous"] < 16 * MIB
