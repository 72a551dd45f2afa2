"""Whole little Llamas: ``native`` beside ``reference``, through prompts, chunks and decoding, for every weight type and shape.

Float weights and an fp32 cache: the two differ by float32 rounding only, which two layers make about ten times larger.
Where numbers are rounded on purpose, to fp16 in the cache or to int8 before an integer weight, both round by the same rule, but a
value on the edge between two steps may fall on either side: 2⁻¹¹ of the value in fp16, 1/127 of its group's largest in
int8. Every row of an fp16 cache has met such edges; of a small integer model's rows at least half have not, of an int8 cache's a
quarter.
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
from .tensors import ALL_TYPES, EVERY_TYPE, FLOAT_TYPES, WIDE_TYPES

Float32Array = npt.NDArray[np.float32]

FLOAT_TOLERANCE = 1e-5
"""Largest |Δlogit| of a row, relative to the row's root mean square, where nothing is rounded on purpose."""
FP16_TOLERANCE = 1e-3
"""The same with edges of an fp16 cache."""
INT8_TOLERANCE = 0.06
"""The same with edges of int8 activations; half of the rows must be within ``FLOAT_TOLERANCE`` nevertheless."""
KV_TOLERANCES: dict[KVDType, float] = {"fp32": FLOAT_TOLERANCE, "fp16": FP16_TOLERANCE, "int8": 0.01}
"""The same for each type of cache. In int8 edges are coarse but rare: a quarter of the rows must have met none."""


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


def row_errors(got: Float32Array, want: Float32Array) -> npt.NDArray[np.float64]:
    assert got.shape == want.shape
    return np.abs(got - want).max(axis=1) / np.sqrt((want.astype(np.float64) ** 2).mean(axis=1))


def check(got: Float32Array, want: Float32Array, tolerance: float, without_edges: float = 0.5) -> None:
    """``without_edges``: the share of rows that must be within ``FLOAT_TOLERANCE`` where others may not."""
    error = row_errors(got, want)
    assert error.max() < tolerance, f"worst row {error.argmax()}: {error.max():.3g}"
    if tolerance > FP16_TOLERANCE:
        typical = np.quantile(error, without_edges)
        assert typical < FLOAT_TOLERANCE, f"all but {without_edges:.0%} of the rows differ by more than {typical:.3g}"


SHAPES = {
    "64x4x2": LittleLlama(),
    "32x9x3": LittleLlama(hidden=96, num_heads=9, num_kv_heads=3, head_dim=32, intermediate=224),
    "80x4x1-half-split": LittleLlama(num_heads=4, num_kv_heads=1, head_dim=80, style=RopeStyle.HALF_SPLIT),
    "128x2x2-partial": LittleLlama(num_heads=2, num_kv_heads=2, head_dim=128, rotary_dim=64, attention_factor=1.1),
    "64x8x1-biases": LittleLlama(num_heads=8, num_kv_heads=1, biases=True, tied=False, vocab_size=161),
    "64x1x1-one-layer": LittleLlama(num_layers=1, num_heads=1, num_kv_heads=1, hidden=64, intermediate=32, vocab_size=17),
    "80x5x5-half-split-partial": LittleLlama(num_heads=5, num_kv_heads=5, head_dim=80, rotary_dim=40, style=RopeStyle.HALF_SPLIT),
}


@pytest.mark.parametrize("kv_dtype", KV_TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(native: Backend, reference: Backend, shape: str, kv_dtype: KVDType) -> None:
    got, want = (all_logits(b, SHAPES[shape], kv_dtype) for b in (native, reference))
    check(got, want, KV_TOLERANCES[kv_dtype], without_edges=0.25)


@pytest.mark.parametrize("type", EVERY_TYPE, ids=lambda t: t.name)
def test_weight_types(native: Backend, reference: Backend, type: TensorType) -> None:
    """Two thirds of the rows of three models: a single one may be unlucky."""
    models = [LittleLlama.of_type(type, seed=seed) for seed in range(3)]
    got, want = (np.concatenate([all_logits(b, model, "fp32", num_threads=2) for model in models]) for b in (native, reference))
    check(got, want, FLOAT_TOLERANCE if type in FLOAT_TYPES else INT8_TOLERANCE, without_edges=2 / 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_mixed_types(native: Backend, reference: Backend, seed: int) -> None:
    model = LittleLlama(linear_types=ALL_TYPES, embedding_type=TensorType.Q8_0, biases=True, seed=seed)
    check(all_logits(native, model, "fp16"), all_logits(reference, model, "fp16"), INT8_TOLERANCE)


@pytest.mark.parametrize("type", [type for type in EVERY_TYPE if type not in FLOAT_TYPES], ids=lambda t: t.name)
def test_dequantized(native: Backend, reference: Backend, type: TensorType) -> None:
    """Expanded to float32 there are no edges to fall over. Rows of wide blocks are twice as long, and so are their sums."""
    model = LittleLlama.of_type(type)
    got, want = (all_logits(b, model, "fp32", dequantize=True) for b in (native, reference))
    check(got, want, FLOAT_TOLERANCE * (2 if type in WIDE_TYPES else 1))


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
    assert row_errors(got, want[:1])[0] > 10 * FLOAT_TOLERANCE
