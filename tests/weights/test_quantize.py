"""Quantisation at load: error bounds by property, against plain rounding and the ``gguf`` package; what is quantised and what is not."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from octavo.weights import Checkpoint, Tensor, TensorType, dequantize, open_checkpoint, quantized
from octavo.weights.quantize import quantize_q4_1, quantize_q8_0, quantize_tensor
from octavo.weights.table import TensorTable

TINY_LLAMA = Path(__file__).parent / "data" / "tiny_llama"


def heavy_tailed(seed: int, scale: int, offset: float) -> np.ndarray:
    values = np.random.default_rng(seed).standard_t(3, (50, 32)) * 10.0**scale + offset
    return values.clip(-6e4, 6e4).astype(np.float32)


ANY_GROUPS = arrays(np.float32, st.tuples(st.integers(1, 4), st.just(32)), elements=st.floats(-60000, 60000, width=32), fill=st.nothing())
GROUPS = ANY_GROUPS | st.builds(heavy_tailed, st.integers(0, 2**32 - 1), st.integers(-9, 3), st.sampled_from([0.0, 0.5, -3.0]))


def q8_0(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values as read back, steps), float64 (groups, 32) and (groups, 1)."""
    out = np.empty((len(values), 34), np.uint8)
    quantize_q8_0(values, out)
    return read(out, TensorType.Q8_0), np.ascontiguousarray(out[:, :2]).view(np.float16).astype(np.float64)


def q4_1(values: np.ndarray, **options: Any) -> np.ndarray:
    out = np.empty((len(values), 20), np.uint8)
    quantize_q4_1(values, out, **options)
    return out


def read(blocks: np.ndarray, kind: TensorType) -> np.ndarray:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.name]).astype(np.float64)


def weighted_error(values: np.ndarray, result: np.ndarray) -> np.ndarray:
    x = values.astype(np.float64)
    weight = np.sqrt((x * x).mean(axis=1, keepdims=True)) + np.abs(x)
    return (weight * (result - x) ** 2).sum(axis=1)


@given(GROUPS)
def test_int8_errors_are_at_most_half_a_step(values: np.ndarray) -> None:
    result, step = q8_0(values)
    assert (np.abs(result - values) <= step / 2 * (1 + 1e-6)).all()
    largest = np.abs(values.astype(np.float64)).max(axis=1, keepdims=True)
    assert (step <= largest / 127 * (1 + 2**-10) + 2.0**-24).all(), "the step is no larger than it must be"


@given(GROUPS)
def test_int4_search_is_never_worse_than_plain_rounding(values: np.ndarray) -> None:
    plain, searched = q4_1(values, steps=()), q4_1(values)
    before, after = (weighted_error(values, read(blocks, TensorType.Q4_1)) for blocks in (plain, searched))
    largest = np.abs(values.astype(np.float64)).max(axis=1)
    assert (after <= before * (1 + 1e-4) + 1e-12 * largest**3).all()


@given(GROUPS)
def test_int4_plain_rounding_errors_are_at_most_half_a_step(values: np.ndarray) -> None:
    result = read(q4_1(values, steps=()), TensorType.Q4_1)
    low, high = (f(values.astype(np.float64), axis=1, keepdims=True) for f in (np.min, np.max))
    step, magnitude = (high - low) / 15, np.maximum(np.abs(low), np.abs(high))
    rounding = 2.0**-11 * magnitude + 15 * (2.0**-11 * step + 2.0**-25) + 2.0**-25  # of the minimum and of the scale to halves
    assert (np.abs(result - values) <= step / 2 + rounding * (1 + 1e-6)).all()


def test_int4_search_gains() -> None:
    """An eighth less weighted error on normally distributed weights, and less plain squared error too."""
    values = np.random.default_rng(0).standard_normal((4000, 32), np.float32) * np.float32(0.02)
    plain, searched = (read(q4_1(values, **options), TensorType.Q4_1) for options in ({"steps": ()}, {}))
    assert weighted_error(values, searched).sum() < 0.88 * weighted_error(values, plain).sum()
    assert ((searched - values) ** 2).sum() < 0.88 * ((plain - values) ** 2).sum()
    theirs = read(gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1), TensorType.Q4_1)
    assert ((searched - values) ** 2).sum() < 0.88 * ((theirs - values) ** 2).sum()


@given(seed=st.integers(0, 2**32 - 1))
def test_what_was_quantised_comes_back(seed: int) -> None:
    """A group that lies on a grid whose ends it uses is kept exactly."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (20, 32))
    codes[:, 3], codes[:, 17] = 0, 15
    scale = np.exp2(rng.integers(-8, 2, (20, 1))) * rng.integers(1, 64, (20, 1)) / 64  # few bits, so that products are exact
    minimum = scale * rng.integers(-20, 5, (20, 1))
    values = (scale * codes + minimum).astype(np.float32)
    np.testing.assert_array_equal(read(q4_1(values), TensorType.Q4_1), values)


def test_like_gguf_where_nothing_is_chosen() -> None:
    """Q8_0 has one way to be computed: the same bytes as ggml's but for ties and scales that halves round."""
    values = np.random.default_rng(0).standard_normal((500, 32), np.float32)
    result, _ = q8_0(values)
    theirs = read(gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), TensorType.Q8_0)
    assert np.mean(np.abs(result - theirs) > 1e-6) < 0.02
    assert ((result - values) ** 2).sum() <= ((theirs - values) ** 2).sum()


def test_a_scale_for_a_row() -> None:
    """Every block has the scale that the row's largest magnitude gives, and no weight is off by more than half of it."""
    values = np.random.default_rng(4).standard_normal((7, 96), np.float32) * np.geomspace(0.01, 100, 7, dtype=np.float32)[:, None]
    values[3] = 0
    blocks = quantize_tensor(float_tensor(values, TensorType.F32), TensorType.I8_CHANNEL).reshape(7, 3, 34)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0].astype(np.float64)
    assert (scales == scales[:, :1]).all()
    largest = np.abs(values.astype(np.float64)).max(axis=1)
    assert ((scales[:, 0] >= largest / 127.5) & (scales[:, 0] <= largest / 127 * (1 + 2.0**-10) + 2.0**-24)).all()
    result = read(blocks.reshape(-1, 34), TensorType.Q8_0).reshape(7, 96)
    assert (np.abs(result - values) <= scales[:, :1] / 2 + 1e-6 * largest[:, None]).all()


@pytest.mark.parametrize("constant", [0.0, -0.0, 1.5, -(2.0**-10), 2.0**-24])
def test_constant_groups(constant: float) -> None:
    values = np.full((2, 32), constant, np.float32)
    np.testing.assert_array_equal(read(q4_1(values), TensorType.Q4_1), values)
    assert np.abs(q8_0(values)[0] - values).max() <= np.abs(constant) / 250


def float_tensor(values: np.ndarray, kind: TensorType) -> Tensor:
    values = np.ascontiguousarray(values, np.float32)
    raw: np.ndarray = values.astype("<f2") if kind is TensorType.F16 else values
    if kind is TensorType.BF16:
        raw = (values.view(np.uint32) >> 16).astype("<u2")
    return Tensor("blk.0.ffn_up.weight", kind, values.shape, raw.view(np.uint8).reshape(int(np.prod(values.shape[:-1])), -1))


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.F16, TensorType.BF16])
@pytest.mark.parametrize("target", [TensorType.Q8_0, TensorType.I8_CHANNEL, TensorType.Q4_1])
@pytest.mark.parametrize("shape", [(3, 64), (2, 3, 32), (700, 320)])
def test_tensors(kind: TensorType, target: TensorType, shape: tuple[int, ...]) -> None:
    """Every source type and shape, in one run or several, gives what its groups give."""
    tensor = float_tensor(np.random.default_rng(1).standard_normal(shape), kind)
    data = quantize_tensor(tensor, target)
    groups = np.empty((int(np.prod(shape)) // 32, target.block_bytes), np.uint8)
    values = dequantize(tensor).reshape(-1, shape[-1] if target is TensorType.I8_CHANNEL else 32)
    (quantize_q4_1 if target is TensorType.Q4_1 else quantize_q8_0)(values, groups)
    assert data.shape == (int(np.prod(shape[:-1])), shape[-1] // 32 * target.block_bytes)
    np.testing.assert_array_equal(data.reshape(groups.shape), groups)


@pytest.mark.parametrize("kind", [kind for kind in TensorType if kind.block_length == 256])
def test_types_in_larger_blocks(kind: TensorType) -> None:
    """From K-quants, several runs of them, to 8 bits: as from the floats that they stand for."""
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, (3, 120, kind.block_bytes), np.uint8)
    halves = {TensorType.Q2_K: (80, 82), TensorType.Q3_K: (108,), TensorType.Q6_K: (208,), TensorType.IQ4_XS: (0,)}.get(kind, (0, 2))
    for at in halves:
        data[:, :, at : at + 2] = rng.uniform(0.001, 0.01, (3, 120, 1)).astype("<f2").view(np.uint8)
    tensor = Tensor("t", kind, (3, 120 * 256), data.reshape(3, -1))
    expected = quantize_tensor(float_tensor(dequantize(tensor), TensorType.F32), TensorType.Q8_0)
    np.testing.assert_array_equal(quantize_tensor(tensor, TensorType.Q8_0), expected)


@pytest.mark.parametrize("target", [TensorType.Q8_0, TensorType.I8_CHANNEL, TensorType.Q4_1])
@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "a NaN or an infinity"), (-np.inf, "a NaN or an infinity"), (1e7, "beyond"), (-3e38, "beyond")]
)
def test_what_cannot_be_quantised_is_named(target: TensorType, value: float, message: str) -> None:
    values = np.ones((4, 64), np.float32)
    values[2, 5] = value
    with pytest.raises(ValueError, match=rf"tensor 'blk.0.ffn_up.weight' cannot be quantised: it holds .*{message}"):
        quantize_tensor(float_tensor(values, TensorType.F32), target)


def test_other_types_are_refused() -> None:
    tensor = float_tensor(np.ones((2, 48)), TensorType.F32)
    with pytest.raises(ValueError, match=r"type F32 and shape \(2, 48\) cannot be quantised to Q8_0"):
        quantize_tensor(tensor, TensorType.Q8_0)
    with pytest.raises(ValueError, match="cannot be quantised to Q4_0"):
        quantize_tensor(float_tensor(np.ones((2, 64)), TensorType.F32), TensorType.Q4_0)


def test_memory_stays_near_the_result() -> None:
    tensor = float_tensor(np.random.default_rng(2).standard_normal((4096, 1024)), TensorType.BF16)  # 8 MB, a third as Q4_1
    tracemalloc.start()
    data = quantize_tensor(tensor, TensorType.Q4_1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < data.nbytes + 40_000_000 * 0.25


# Checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["int8", "int8-channel", "int4"])
def test_quantised_checkpoint(quantization: Any) -> None:
    original = open_checkpoint(TINY_LLAMA)
    result: Checkpoint = quantized(original, quantization)
    assert (result.path, result.architecture, dict(result.metadata)) == (original.path, original.architecture, dict(original.metadata))
    assert list(result.tensors) == list(original.tensors)
    for name, tensor in result.tensors.items():
        before = original.tensors[name]
        assert (tensor.name, tensor.shape) == (name, before.shape)
        if len(before.shape) == 1:
            assert tensor is before
            continue
        kinds = {"int8": TensorType.Q8_0, "int8-channel": TensorType.I8_CHANNEL, "int4": TensorType.Q4_1}
        assert tensor.type is (TensorType.Q8_0 if name == "token_embd.weight" else kinds[quantization])
        assert tensor.num_bytes == tensor.data.nbytes
        a, b = dequantize(tensor), dequantize(before)
        bound = {TensorType.Q4_1: 0.09, TensorType.Q8_0: 0.006, TensorType.I8_CHANNEL: 0.009}[tensor.type]
        assert np.linalg.norm(a - b) < np.linalg.norm(b) * bound
        assert name in repr(tensor)


def test_fingerprints_tell_them_apart() -> None:
    original = open_checkpoint(TINY_LLAMA)
    kinds: tuple[Any, ...] = ("int8", "int8-channel", "int4")
    fingerprints = {original.fingerprint, *(quantized(original, kind).fingerprint for kind in kinds)}
    assert len(fingerprints) == 4
    assert all(len(fingerprint) == 32 for fingerprint in fingerprints)
    assert quantized(open_checkpoint(TINY_LLAMA), "int8").fingerprint in fingerprints


def test_what_stays_as_it_is(small_gguf: Path) -> None:
    """Quantised tensors, vectors, rows that are no whole groups; and refusals are passed on."""
    original = open_checkpoint(small_gguf)
    result = quantized(original, "int8")
    assert all(result.tensors[name] is tensor for name, tensor in original.tensors.items())
    kept = float_tensor(np.ones((2, 64)), TensorType.F32)
    names = ("blk.0.ffn_gate_inp.weight", "position_embd.weight", "blk.0.attn_q.bias", "blk.0.attn_q.weight")
    entries = {name: Tensor(name, kept.type, kept.shape, kept.data) for name in names}

    class Original:
        path, architecture, metadata, fingerprint = Path("x"), "llama", {}, "0" * 32
        tensors = TensorTable({**entries, "odd": "x: the tensor 'odd' has the type I32"})

    tensors = quantized(Original(), "int8").tensors
    assert [name for name in names if tensors[name].type is not TensorType.F32] == ["blk.0.attn_q.weight"]
    with pytest.raises(ValueError, match="'odd' has the type I32"):
        tensors["odd"]


def test_an_unknown_quantisation() -> None:
    with pytest.raises(ValueError, match="quantization='int3' is invalid: choose one of int8, int8-channel, int4"):
        quantized(open_checkpoint(TINY_LLAMA), "int3")  # type: ignore[arg-type]
