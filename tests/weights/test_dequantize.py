"""Dequantisation equals the ``gguf`` package's to the bit, for any bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.weights import Checkpoint, Tensor, TensorType, dequantize


def ggml_type(kind: TensorType) -> gguf.GGMLQuantizationType:
    """Blocks whose scales say of whole rows what Q8_0's say of themselves are read like Q8_0's."""
    return gguf.GGMLQuantizationType["Q8_0" if kind is TensorType.I8_CHANNEL else kind.name]


def expected(kind: TensorType, data: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, ggml_type(kind))


@pytest.mark.parametrize("kind", list(TensorType))
@settings(max_examples=30)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_equals_gguf(kind: TensorType, rows: int, blocks: int, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks * kind.block_bytes), np.uint8)
    data.flags.writeable = False
    with np.errstate(all="ignore"):
        ours = dequantize(Tensor("t", kind, (rows, blocks * kind.block_length), data))
    if kind in (TensorType.F32, TensorType.F16):
        theirs = data.view(kind.name.replace("F", "<f").replace("32", "4").replace("16", "2")).astype(np.float32)
    else:
        theirs = expected(kind, data)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    assert ours.flags.writeable
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", list(TensorType))
def test_block_sizes_are_ggmls(kind: TensorType) -> None:
    assert gguf.GGML_QUANT_SIZES[ggml_type(kind)] == (kind.block_length, kind.block_bytes)


def test_more_blocks_than_a_chunk() -> None:
    data = np.random.default_rng(2).integers(0, 256, (3, 500 * TensorType.Q4_K.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        ours = dequantize(Tensor("t", TensorType.Q4_K, (3, 500 * 256), data))
    np.testing.assert_array_equal(ours, expected(TensorType.Q4_K, data))


@pytest.mark.parametrize("kind", [TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_1])
def test_undoes_quantisation(kind: TensorType) -> None:
    """What ``gguf`` quantised comes back within half a step of its scale."""
    values = np.random.default_rng(1).standard_normal((4, 6, 64)).astype(np.float32)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.name])
    result = dequantize(Tensor("t", kind, values.shape, data.reshape(24, -1)))
    assert result.shape == values.shape
    step = {TensorType.Q8_0: 1 / 127, TensorType.Q4_0: 1 / 8, TensorType.Q4_1: 2 / 15}[kind]
    largest = np.abs(values).reshape(4, 6, 2, 32).max(-1)
    bound = 1.01 * step * largest * (1.0 if kind is TensorType.Q4_0 else 0.5) + 1e-3
    assert (np.abs(result - values).reshape(4, 6, 2, 32).max(-1) <= bound).all()


@pytest.mark.model
def test_smollm2(smollm2: Checkpoint) -> None:
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.29.ffn_down.weight", "output_norm.weight"):
        tensor = smollm2.tensors[name]
        theirs = expected(tensor.type, np.array(tensor.data)) if tensor.type is not TensorType.F32 else np.array(tensor.data).view("<f4")
        np.testing.assert_array_equal(dequantize(tensor), theirs.reshape(tensor.shape))
