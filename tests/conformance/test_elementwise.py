"""Embedding, RMSNorm, RoPE, SiLU-mul, add and row selection against their formulas in float64.

Tolerances count float32 roundings (each 2⁻²⁴ of what it rounds); an exponential may be off by a few units in the last place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend
from octavo.program import RopeStyle
from octavo.weights.tensor import TensorType

from .programs import compile_program, one_op_program
from .steps import Driver, Sequence
from .tensors import EVERY_TYPE, float_tensor, random_tensor, values_of, whole_blocks

UNIT = 2.0**-24
ROWS = (1, 15, 16, 17, 33)
Float32Array = npt.NDArray[np.float32]


def random_rows(rows: int, width: int) -> Float32Array:
    rng = np.random.default_rng(rows * 1000 + width)
    return (rng.normal(size=(rows, width)) * 10.0 ** rng.uniform(-2, 2, (rows, 1))).astype(np.float32)


@pytest.mark.parametrize("type", EVERY_TYPE, ids=lambda t: t.name)
def test_embedding_rows_are_the_stored_numbers(backend: Backend, type: TensorType) -> None:
    """At most one rounding, where scale · q + minimum does not fit a float32."""
    width = whole_blocks(96, type)
    tensor = random_tensor(np.random.default_rng(0), "words", type, (70, width))
    program, tensors = one_op_program(np.zeros((70, 1), np.float32), lambda b, x: b.embedding("words", 70, width), [tensor])
    driver = Driver(compile_program(backend, program, tensors))
    ids = np.random.default_rng(1).integers(0, 70, 33)
    got = driver.run([(driver.sequence(ids), 33)])
    want = values_of(tensor)[ids]
    if type in (TensorType.Q4_1, TensorType.Q5_1):
        assert np.allclose(got, want, rtol=0, atol=float(np.abs(want).max()) * 4 * UNIT)
    else:
        assert np.array_equal(got, want.astype(np.float32))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [1, 8, 33, 64, 576])
def test_rms_norm(backend: Backend, rows: int, width: int) -> None:
    x = random_rows(rows, width)
    weight = np.random.default_rng(2).normal(1, 0.3, width).astype(np.float32)
    program, tensors = one_op_program(x, lambda b, value: b.rms_norm(value, "norm", 1e-5), [float_tensor("norm", weight)])
    driver = Driver(compile_program(backend, program, tensors))
    got = driver.run([(driver.sequence(range(rows)), rows)])
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    assert (np.abs(got - want) <= (width / 2 + 8) * UNIT * np.abs(want)).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [1, 8, 33, 160])
def test_silu_mul(backend: Backend, rows: int, width: int) -> None:
    x = random_rows(rows, 2 * width)
    x[0, 0] = -200.0  # where exp(-x) overflows
    program, tensors = one_op_program(x, lambda b, value: b.silu_mul(*b.split(value, [width, width])))
    driver = Driver(compile_program(backend, program, tensors))
    got = driver.run([(driver.sequence(range(rows)), rows)])
    gate, up = x[:, :width].astype(np.float64), x[:, width:].astype(np.float64)
    want = gate / (1 + np.exp(-gate)) * up
    assert (np.abs(got - want) <= 16 * UNIT * np.abs(want) + 1e-30).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [1, 8, 33, 160])
def test_add(backend: Backend, rows: int, width: int) -> None:
    x = random_rows(rows, 2 * width)
    program, tensors = one_op_program(x, lambda b, value: b.add(*b.split(value, [width, width])))
    driver = Driver(compile_program(backend, program, tensors))
    assert np.array_equal(driver.run([(driver.sequence(range(rows)), rows)]), x[:, :width] + x[:, width:])


def test_columns_of_a_value_are_views(backend: Backend) -> None:
    """Neighbouring columns taken apart, nested, and put to use at odd offsets."""
    x = random_rows(17, 30)

    def write(b, value):  # type: ignore[no-untyped-def]
        first, middle, last = b.split(value, [7, 16, 7])
        return b.add(b.add(first, last), middle.columns(5, 7))

    program, tensors = one_op_program(x, write)
    driver = Driver(compile_program(backend, program, tensors))
    got = driver.run([(driver.sequence(range(17)), 17)])
    assert np.array_equal(got, (x[:, :7] + x[:, 23:]) + x[:, 12:19])


@pytest.mark.parametrize("style", RopeStyle)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(32, 32), (64, 64), (64, 32), (80, 80), (80, 20), (128, 128), (128, 64), (16, 2)])
@pytest.mark.parametrize("heads", [1, 3])
def test_rope(backend: Backend, style: RopeStyle, head_dim: int, rotary_dim: int, heads: int) -> None:
    """Rows of three sequences at near and far positions; the elements past ``rotary_dim`` are copied untouched."""
    x = random_rows(40, heads * head_dim)
    half = rotary_dim // 2
    inv_freq = 10000.0 ** (-np.arange(half) / half)
    program, tensors = one_op_program(
        x, lambda b, value: b.rope(value, head_dim=head_dim, style=style, inv_freq=inv_freq.tolist(), attention_factor=1.25)
    )
    driver = Driver(compile_program(backend, program, tensors), num_blocks=256)
    ids = np.random.default_rng(1).permutation(40)
    chunks, positions, at = [], [], 0
    for start, n in [(0, 1), (1900, 17), (511, 15)]:
        chunks.append((Sequence([0] * start + ids[at : at + n].tolist(), [], start), n))
        positions += range(start, start + n)
        at += n
    got = driver.run(chunks).reshape(at, heads, head_dim)
    rows = x[ids[:at]].reshape(at, heads, head_dim).astype(np.float64)
    angle = np.array(positions)[:, None, None] * inv_freq
    cos, sin = 1.25 * np.cos(angle), 1.25 * np.sin(angle)
    want = rows.copy()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if style is RopeStyle.INTERLEAVED else (i, i + half)
        want[..., a] = rows[..., a] * cos[..., i] - rows[..., b] * sin[..., i]
        want[..., b] = rows[..., a] * sin[..., i] + rows[..., b] * cos[..., i]
    assert np.array_equal(got[..., rotary_dim:], rows[..., rotary_dim:])
    size = 1.25 * np.abs(rows).max(axis=-1, keepdims=True)
    assert (np.abs(got - want) <= 8 * UNIT * size).all()


@pytest.mark.parametrize("rows", [[], [0], [32], [3, 4, 20], list(range(33))], ids=len)
def test_logits_of_chosen_rows(backend: Backend, rows: list[int]) -> None:
    x = random_rows(33, 24)
    program, tensors = one_op_program(x, lambda b, value: value)
    driver = Driver(compile_program(backend, program, tensors))
    a, b = driver.sequence(range(20)), driver.sequence(range(20, 33))
    got = driver.run([(a, 20), (b, 13)], logits_rows=np.array(rows, np.int32))
    assert got.shape == (len(rows), 24)
    assert np.array_equal(got, x[rows])
