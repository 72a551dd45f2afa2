"""``linear`` for every weight type, width, number of rows, bias and fusion, against an independent float64 statement.

The tolerance is the textbook bound of a float32 sum, not a guess: n terms summed in any order are off by at most
n · 2⁻²⁴ · Σ|terms| (Higham, "Accuracy and Stability of Numerical Algorithms", §4.2). A term that is lost or read from a
neighbour is off by about Σ|terms| / n, far above it. For integer weights the terms are the exact products of groups of 16 or 32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend
from octavo.weights.tensor import Tensor, TensorType

from .programs import compile_program, one_op_program
from .steps import Driver
from .tensors import ALL_TYPES, EVERY_TYPE, FLOAT_TYPES, WIDE_TYPES, float_tensor, minimum_of, random_tensor, values_of, whole_blocks

UNIT = 2.0**-24
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 33)
Float64Array = npt.NDArray[np.float64]


def inputs(rng: np.random.Generator, rows: int, width: int) -> npt.NDArray[np.float32]:
    """Rows of very different sizes, with an outlier, a group of zeros and a row of zeros among them."""
    x = rng.normal(size=(rows, width)) * 10.0 ** rng.uniform(-3, 2, (rows, 1))
    x[0, rng.integers(width)] *= 50
    x[rows // 2, :32] = 0
    if rows > 4:
        x[3] = 0
    return x.astype(np.float32)


HALVED_TYPES = (TensorType.Q2_K, TensorType.Q3_K, TensorType.Q6_K)
"""Types with a scale for every 16 weights; the other integer ones have one for 32."""


def rounded_to_int8(x: npt.NDArray[np.float32]) -> Float64Array:
    """What integer weights see of x: written out group by group."""
    out = np.zeros(x.shape)
    for row in range(x.shape[0]):
        for start in range(0, x.shape[1], 32):
            group = x[row, start : start + 32]
            most = np.float32(max(abs(group)))
            if most > 0:
                q = np.rint(group * (np.float32(127) / most))
                out[row, start : start + 32] = q.astype(np.float64) * float(most / np.float32(127))
    return out


def expected(x: npt.NDArray[np.float32], tensor: Tensor) -> tuple[Float64Array, Float64Array]:
    """x Wᵀ in float64, and the bound of the error that float32 sums may make."""
    w = values_of(tensor)
    if tensor.type in FLOAT_TYPES:
        seen, num_terms = x.astype(np.float64), x.shape[1]
        size = np.abs(w)
    else:  # per scale: an exact integer sum times two scales, and the minimum times the sum of x
        seen, num_terms = rounded_to_int8(x), 2 * x.shape[1] // (16 if tensor.type in HALVED_TYPES else 32)
        minimum = minimum_of(tensor)
        size = np.abs(w - minimum) + np.abs(minimum)
    return seen @ w.T, (num_terms + 6) * UNIT * (np.abs(seen) @ size.T) + 1e-30


def run_linear(
    backend: Backend, x: npt.NDArray[np.float32], tensors: list[Tensor], biases: list[Tensor | None], *, dequantize: bool = False
) -> npt.NDArray[np.float32]:
    widths = {tensor.name: tensor.shape[0] for tensor in tensors}
    names = [None if bias is None else bias.name for bias in biases]
    given = tensors + [bias for bias in biases if bias is not None]
    program, weights = one_op_program(x, lambda b, value: b.linear(value, widths, names), given)
    driver = Driver(compile_program(backend, program, weights, dequantize=dequantize))
    return driver.run([(driver.sequence(range(len(x))), len(x))])


def check(got: npt.NDArray[np.float32], want: Float64Array, bound: Float64Array) -> None:
    excess = np.abs(got - want) / (bound + UNIT * np.abs(want))
    assert got.shape == want.shape
    assert excess.max() <= 1, f"{excess.max():.3g} times the bound at {np.unravel_index(excess.argmax(), excess.shape)}"


@pytest.mark.parametrize("type", EVERY_TYPE, ids=lambda t: t.name)
@pytest.mark.parametrize("rows", ROWS)
def test_rows(backend: Backend, type: TensorType, rows: int) -> None:
    rng = np.random.default_rng(rows)
    width = whole_blocks(96, type)
    weight = random_tensor(rng, "w", type, (48, width))
    x = inputs(rng, rows, width)
    check(run_linear(backend, x, [weight], []), *expected(x, weight))


@pytest.mark.parametrize("type", ALL_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize(("outputs", "width"), [(1, 32), (15, 64), (16, 32), (17, 160), (33, 576), (130, 1536), (250, 32)])
def test_widths(backend: Backend, type: TensorType, outputs: int, width: int) -> None:
    rng = np.random.default_rng(outputs + width)
    weight = random_tensor(rng, "w", type, (outputs, width))
    x = inputs(rng, 9, width)
    check(run_linear(backend, x, [weight], []), *expected(x, weight))


@pytest.mark.parametrize("type", WIDE_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize(("outputs", "width"), [(1, 256), (17, 512), (33, 1536), (130, 256), (20, 1792)])
def test_widths_of_wide_blocks(backend: Backend, type: TensorType, outputs: int, width: int) -> None:
    test_widths(backend, type, outputs, width)


@pytest.mark.parametrize("type", [TensorType.F32, TensorType.F16, TensorType.BF16], ids=lambda t: t.name)
@pytest.mark.parametrize("width", [1, 7, 33, 100])
def test_float_weights_of_any_width(backend: Backend, type: TensorType, width: int) -> None:
    rng = np.random.default_rng(width)
    weight = random_tensor(rng, "w", type, (20, width))
    x = rng.normal(size=(5, width)).astype(np.float32)
    check(run_linear(backend, x, [weight], []), *expected(x, weight))


@pytest.mark.parametrize("rows", [1, 16, 19])
def test_fused_projections_of_mixed_types_with_biases(backend: Backend, rows: int) -> None:
    """Every type side by side in one operation, odd widths, some biases missing."""
    rng = np.random.default_rng(rows)
    x = inputs(rng, rows, 256)
    tensors = [random_tensor(rng, f"w{i}", type, (17 + 5 * i, 256)) for i, type in enumerate(EVERY_TYPE)]
    biases = [float_tensor(f"b{i}", rng.normal(size=t.shape[0])) if i % 3 else None for i, t in enumerate(tensors)]
    got = run_linear(backend, x, tensors, biases)
    start = 0
    for tensor, bias in zip(tensors, biases, strict=True):
        want, bound = expected(x, tensor)
        if bias is not None:
            want, bound = want + values_of(bias), bound + 2 * UNIT * np.abs(values_of(bias))
        check(got[:, start : start + tensor.shape[0]], want, bound)
        start += tensor.shape[0]
    assert start == got.shape[1]


def test_int8_weight_of_minus_128(backend: Backend) -> None:
    """The byte that has no positive counterpart, met by activations of ±127."""
    raw = np.zeros((16, 34), np.uint8)
    raw[:, :2] = np.full((16, 1), 0.5, np.float16).view(np.uint8)
    raw[:, 2:] = 128
    weight = Tensor("w", TensorType.Q8_0, (16, 32), raw)
    x = np.where(np.arange(32) % 3 == 0, -1.0, 1.0).astype(np.float32) * np.ones((2, 1), np.float32)
    got = run_linear(backend, x, [weight], [])
    check(got, *expected(x, weight))


@pytest.mark.parametrize("type", EVERY_TYPE, ids=lambda t: t.name)
def test_dequantize_expands_weights(backend: Backend, type: TensorType) -> None:
    """With ``dequantize`` activations are not rounded either."""
    rng = np.random.default_rng(5)
    weight = random_tensor(rng, "w", type, (40, 256))
    x = inputs(rng, 6, 256)
    w = values_of(weight)
    bound = (256 + 6) * UNIT * (np.abs(x).astype(np.float64) @ np.abs(w).T) + 1e-30
    check(run_linear(backend, x, [weight], [], dequantize=True), x.astype(np.float64) @ w.T, bound)


@pytest.mark.parametrize("type", EVERY_TYPE, ids=lambda t: t.name)
@pytest.mark.parametrize("poison", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_faulty_row_is_not_hidden_and_stays_alone(backend: Backend, type: TensorType, poison: float) -> None:
    rng = np.random.default_rng(3)
    width = whole_blocks(96, type)
    weight = random_tensor(rng, "w", type, (33, width))
    x = rng.normal(size=(7, width)).astype(np.float32)
    clean = run_linear(backend, x, [weight], [])
    x[4, 40] = poison
    got = run_linear(backend, x, [weight], [])
    assert not np.isfinite(got[4]).any()
    others = np.arange(7) != 4
    assert np.array_equal(got[others], clean[others])
