"""Whole little Llamas: ``native`` beside ``reference``, through prompts, chunks and decoding, for every weight type and shape.

Float weights: the two differ by float32 rounding only, which two layers make about as large as a few hundred units of 2⁻²⁴.
Integer weights: both round activations to int8 by the same rule, so most rows agree as closely; but where a value lies on
the edge between two bytes, a difference in its last bit moves it by one step of 1/127 of its group's largest,
and that row, and rows that attend to it, differ by about as much as the rounding itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend
from octavo.config import KVDType
from octavo.program import RopeStyle
from octavo.weights.tensor import TensorType

from .programs import LittleLlama, compile_program
from .steps import Driver
from .tensors import ALL_TYPES, INTEGER_TYPES

Float32Array = npt.NDArray[np.float32]

FLOAT_TOLERANCE = 1e-5
"""Largest |Δlogit| of a row of a float model, relative to the row's root mean square."""
EDGE_TOLERANCE = 0.03
"""The same where activations fell on the other side of an edge."""
EDGE_ROWS = 0.5
"""At most this part of the rows of an integer model may need it."""


def all_logits(backend: Backend, model: LittleLlama, kv_dtype: KVDType, num_threads: int = 1, dequantize: bool = False) -> Float32Array:
    """Prompts of odd lengths in a batch, then the rest of each in ragged chunks, then one by one."""
    exe = compile_program(backend, *model.build(), kv_dtype=kv_dtype, num_threads=num_threads, dequantize=dequantize)
    driver = Driver(exe)
    rng = np.random.default_rng(11)
    sequences = [driver.sequence(rng.integers(0, model.vocab_size, n + 20)) for n in (1, 15, 16, 17, 33)]
    parts = [driver.run([(s, n) for s, n in zip(sequences, (1, 15, 16, 17, 33), strict=True)])]
    parts.append(driver.run([(s, n) for s, n in zip(sequences[::-1], (17, 1, 2, 16, 1), strict=True)]))
    parts.extend(driver.run([(s, 1) for s in sequences[:3]]) for _ in range(3))
    exe.close()
    return np.concatenate(parts)


def check(got: Float32Array, want: Float32Array, exact_rounding: bool) -> None:
    error = np.abs(got - want).max(axis=1) / np.sqrt((want.astype(np.float64) ** 2).mean(axis=1))
    assert got.shape == want.shape
    if exact_rounding:
        assert error.max() < FLOAT_TOLERANCE, f"worst row {error.argmax()}: {error.max():.3g}"
    else:
        assert np.quantile(error, 1 - EDGE_ROWS) < FLOAT_TOLERANCE, f"half of the rows differ by more than {np.median(error):.3g}"
        assert error.max() < EDGE_TOLERANCE, f"worst row {error.argmax()}: {error.max():.3g}"


SHAPES = {
    "64x4x2": LittleLlama(),
    "32x9x3": LittleLlama(hidden=96, num_heads=9, num_kv_heads=3, head_dim=32, intermediate=224),
    "80x4x1-half-split": LittleLlama(num_heads=4, num_kv_heads=1, head_dim=80, style=RopeStyle.HALF_SPLIT),
    "128x2x2-partial": LittleLlama(num_heads=2, num_kv_heads=2, head_dim=128, rotary_dim=64, attention_factor=1.1),
    "64x8x1-biases": LittleLlama(num_heads=8, num_kv_heads=1, biases=True, tied=False, vocab_size=161),
    "64x1x1-one-layer": LittleLlama(num_layers=1, num_heads=1, num_kv_heads=1, hidden=64, intermediate=32, vocab_size=17),
    "80x5x5-half-split-partial": LittleLlama(num_heads=5, num_kv_heads=5, head_dim=80, rotary_dim=40, style=RopeStyle.HALF_SPLIT),
}


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(native: Backend, reference: Backend, shape: str, kv_dtype: KVDType) -> None:
    model = SHAPES[shape]
    check(all_logits(native, model, kv_dtype), all_logits(reference, model, kv_dtype), exact_rounding=kv_dtype == "fp32")


@pytest.mark.parametrize("type", ALL_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_weight_types(native: Backend, reference: Backend, type: TensorType, seed: int) -> None:
    model = LittleLlama(linear_types=(type,), embedding_type=type, seed=seed)
    got, want = (all_logits(b, model, "fp32", num_threads=2) for b in (native, reference))
    check(got, want, exact_rounding=type not in INTEGER_TYPES)


@pytest.mark.parametrize("seed", [0, 1])
def test_mixed_types(native: Backend, reference: Backend, seed: int) -> None:
    model = LittleLlama(linear_types=ALL_TYPES, embedding_type=TensorType.Q8_0, biases=True, seed=seed)
    check(all_logits(native, model, "fp16"), all_logits(reference, model, "fp16"), exact_rounding=False)


@pytest.mark.parametrize("type", INTEGER_TYPES, ids=lambda t: t.name)
def test_dequantized(native: Backend, reference: Backend, type: TensorType) -> None:
    """Expanded to float32 there are no edges to fall over."""
    model = LittleLlama(linear_types=(type,), embedding_type=TensorType.Q8_0)
    got, want = (all_logits(b, model, "fp32", dequantize=True) for b in (native, reference))
    check(got, want, exact_rounding=True)


def test_the_tolerance_notices_a_wrong_weight(reference: Backend) -> None:
    """The yardstick itself: one projection of one layer a tenth of a percent too large is ten times out of tolerance."""
    from .tensors import float_tensor, values_of

    model = LittleLlama()
    want = all_logits(reference, model, "fp32")
    program, tensors = model.build()
    tensors["1.up"] = float_tensor("1.up", values_of(tensors["1.up"]) * 1.001)
    driver = Driver(compile_program(reference, program, tensors))
    rng = np.random.default_rng(11)
    got = driver.whole(rng.integers(0, model.vocab_size, 21))[:1]
    error = np.abs(got - want[:1]).max() / np.sqrt((want[:1] ** 2).mean())
    assert error > 10 * FLOAT_TOLERANCE
