"""Every tensor type has a packing of about its size, which keeps every weight."""

from __future__ import annotations

import logging

import numpy as np
import pytest

pytest.importorskip("octavo._native", reason="the native extension is not built")

from octavo import _native
from octavo.backends.native.formats import PackedFormat, log_packing, packed_format, packed_groups
from octavo.backends.native.packed_layout import plan_layout
from octavo.program import ProgramBuilder
from octavo.weights import Tensor, TensorType, dequantize

FORMATS = {
    TensorType.F32: PackedFormat("F32", 32.0),
    TensorType.F16: PackedFormat("F16", 16.0),
    TensorType.BF16: PackedFormat("BF16", 16.0),
    TensorType.Q8_0: PackedFormat("INT8_G32", 8.5),
    TensorType.Q4_0: PackedFormat("OFFSET4_G32", 4.5),
    TensorType.Q4_1: PackedFormat("INT4_G32", 5.0),
    TensorType.Q5_0: PackedFormat("OFFSET5_G32", 5.5),
    TensorType.Q5_1: PackedFormat("INT5_G32", 6.0),
    TensorType.Q2_K: PackedFormat("INT2_K", 2.625),
    TensorType.Q3_K: PackedFormat("INT3_K", 3.625),
    TensorType.Q4_K: PackedFormat("INT4_K", 4.5),
    TensorType.Q5_K: PackedFormat("INT5_K", 5.5),
    TensorType.Q6_K: PackedFormat("INT6_K", 6.625),
    TensorType.IQ4_NL: PackedFormat("TABLE4_G32", 4.5),
    TensorType.IQ4_XS: PackedFormat("TABLE4_K", 4.375),
    TensorType.I8_CHANNEL: PackedFormat("INT8_CHANNEL", 8.125),  # of rows of 256; of longer ones less
}
HALVES_AT = {TensorType.Q2_K: (80, 82), TensorType.Q3_K: (108,), TensorType.Q6_K: (208,)}
WITH_MINIMUM = (TensorType.Q4_1, TensorType.Q5_1, TensorType.Q4_K, TensorType.Q5_K)


def random_tensor(kind: TensorType, rows: int, width: int, seed: int = 0) -> Tensor:
    """Any bytes, but scales of either sign between 2⁻⁸ and 2⁻⁴, and some that are subnormal."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * width // kind.block_length, kind.block_bytes), np.uint8)
    if kind is TensorType.F32:
        blocks = rng.normal(size=(rows * width, 1)).astype(np.float32).view(np.uint8)
    elif kind is TensorType.BF16:
        blocks[:, 1] &= 0xBF  # no infinities
    else:
        for at in HALVES_AT.get(kind, (0, 2) if kind in WITH_MINIMUM else (0,)):
            scale = np.where(rng.random(len(blocks)) < 0.1, rng.integers(0, 1024, len(blocks)), rng.integers(0x1C00, 0x2C00, len(blocks)))
            scale |= rng.integers(0, 2, len(blocks)) << 15
            blocks[:, at : at + 2] = scale.astype("<u2")[:, None].view(np.uint8)
    if kind is TensorType.I8_CHANNEL:
        of_rows = blocks.reshape(rows, -1, kind.block_bytes)
        of_rows[:, :, :2] = of_rows[:, :1, :2]
    return Tensor("t", kind, (rows, width), np.ascontiguousarray(blocks.reshape(rows, -1)))


def packed_values(tensor: Tensor) -> np.ndarray:
    values: np.ndarray = _native.packed_values(getattr(_native.SourceType, tensor.type.name), tensor.data, tensor.shape[1])
    return values


@pytest.mark.parametrize("kind", TensorType)
def test_formats(kind: TensorType) -> None:
    assert packed_format(kind) == FORMATS[kind]
    assert packed_format(kind, dequantize=True) == PackedFormat("F32", 32.0)


@pytest.mark.parametrize("kind", TensorType)
@pytest.mark.parametrize(("rows", "width"), [(1, 256), (16, 512), (37, 256)])
def test_every_weight_is_kept(kind: TensorType, rows: int, width: int) -> None:
    tensor = random_tensor(kind, rows, width, seed=rows)
    np.testing.assert_array_equal(packed_values(tensor), dequantize(tensor))


NO_FLOATS = [kind for kind in TensorType if not kind.is_float and kind is not TensorType.I8_CHANNEL]  # whose rows have one scale


@pytest.mark.parametrize("kind", NO_FLOATS)
def test_a_scale_that_is_not_finite_is_not_hidden(kind: TensorType) -> None:
    tensor = random_tensor(kind, 2, 256)
    at = HALVES_AT.get(kind, (0,))[0]
    tensor.data[0, at : at + 2] = np.array([np.inf], np.float16).view(np.uint8)
    values = packed_values(tensor)
    assert not np.isfinite(values[0]).all()
    assert np.isfinite(values[1]).all()


def test_a_row_of_several_scales_is_refused() -> None:
    tensor = random_tensor(TensorType.I8_CHANNEL, 4, 256)
    tensor.data[2, 3 * 34 : 3 * 34 + 2] = np.array([0.5], "<f2").view(np.uint8)
    with pytest.raises(ValueError, match=r"I8_CHANNEL scale 0\.5.* of row 2, block 3: the row begins with"):
        packed_values(tensor)


def test_the_log_says_what_grows(caplog: pytest.LogCaptureFixture) -> None:
    types = {"embed": TensorType.Q6_K, "first": TensorType.Q4_K, "second": TensorType.Q4_K}
    b = ProgramBuilder("three", 64)
    x = b.embedding("embed", 20, 256)
    b.paged_attention(x, x, x, layer=0, num_heads=2, num_kv_heads=2, head_dim=128)
    program = b.build(b.select_rows(b.linear(x, {"first": 20, "second": 20})))
    layout = plan_layout(program, {name: random_tensor(kind, 20, 256) for name, kind in types.items()}, False)
    groups = {group.type: group for group in packed_groups(layout)}
    assert groups[TensorType.Q4_K].num_matrices == 2
    assert groups[TensorType.Q4_K].file_bytes == 2 * 20 * 144
    assert groups[TensorType.Q4_K].packed_bytes == 2 * 2 * 2304  # two panels of 16 rows each
    with caplog.at_level(logging.INFO, "octavo"):
        log_packing(layout)
    assert "2 × Q4_K as INT4_K" in caplog.text
    assert "1 × Q6_K as INT6_K" in caplog.text
