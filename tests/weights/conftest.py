"""Small GGUF files, written by the ``gguf`` package; and a cache directory of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from octavo.weights import TensorType

GGUFFile = Callable[..., Path]


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, np.ndarray]], alignment: int | None = None
) -> Path:
    """``tensors`` maps names to a ggml type's name and an array: of bytes (rows, bytes per row) for quantised types and BF16."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_int64(key, value)
        elif isinstance(value, float):
            writer.add_float64(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, (kind, array) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def gguf_file(tmp_path: Path) -> GGUFFile:
    """``gguf_file(metadata, tensors, alignment=…) -> Path``."""

    def write(metadata: Mapping[str, Any] | None = None, tensors: Mapping[str, Any] | None = None, alignment: int | None = None) -> Path:
        return write_gguf(tmp_path / "model.gguf", metadata or {}, tensors or {}, alignment)

    return write


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tensor of every type and values of every kind, about five kilobytes."""
    rng = np.random.default_rng(0)
    tensors = {
        "f32": ("F32", rng.standard_normal((3, 5), np.float32)),
        "f16": ("F16", rng.standard_normal((2, 4)).astype(np.float16)),
        "bf16": ("BF16", rng.integers(0, 256, (2, 10), np.uint8)),
        "q8_0": ("Q8_0", rng.integers(0, 256, (3, 68), np.uint8)),
        "q4_0": ("Q4_0", rng.integers(0, 256, (2, 36), np.uint8)),
        "q4_1": ("Q4_1", rng.integers(0, 256, (2, 3, 20), np.uint8)),
        **{
            kind.name.lower(): (kind.name, rng.integers(0, 256, (2, kind.block_bytes), np.uint8))
            for kind in TensorType
            if kind.name in ("Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
        },
        "vector": ("F32", rng.standard_normal(7, np.float32)),
    }
    metadata = {
        "llama.block_count": 2,
        "llama.rope.freq_base": 1e5,
        "tokenizer.ggml.tokens": ["a", "é", "👩‍👩‍👧", ""],
        "tokenizer.ggml.scores": [0.5, -1.0],
        "tokenizer.ggml.token_type": [1, 3, 4, -2],
        "flags": [True, False],
        "tokenizer.ggml.add_bos_token": False,
    }
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", metadata, tensors)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "octavo"
