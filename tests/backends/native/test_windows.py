"""Windows of rows: which buffers get one, and that results have the same bits with them as without."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from octavo.backends import get_backend
from octavo.backends.base import CompileOptions, Executable
from octavo.backends.native import windows
from octavo.backends.native.instructions import LinearI, SiluMulI
from octavo.backends.native.lower import lower
from octavo.backends.native.windows import find_windows
from octavo.program import Program, ProgramBuilder, Rows, Value
from octavo.weights.tensor import TensorType

from ...conformance.programs import LittleLlama
from ...conformance.steps import Driver

MAX_ROWS = {Rows.TOKENS: 512, Rows.LOGITS: 64}
MAX_TOKENS = 120


def force(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(windows, "WINDOW_BYTES", 0)
    monkeypatch.setattr(windows, "LEAST_ROWS", rows)


def wide(width: int, *, gate_twice: bool = False, between: bool = False, apart: bool = False) -> Program:
    """One SiLU-mul of ``width`` columns; in turn: another reads gate too, something comes before it, up has a projection of its own."""
    b = ProgramBuilder("wide", 128)
    x = b.embedding("e", 96, 64)
    if apart:
        gate, up = b.linear(x, {"gate": width}), b.linear(x, {"up": width})
    else:
        gate, up = b.split(b.linear(x, {"gate": width, "up": width}), [width, width])
    other: Value = b.rms_norm(x, "n", 1e-5) if between else x
    y = b.add(other, b.linear(b.silu_mul(gate, up), {"down": 64}))
    if gate_twice:
        y = b.add(y, b.linear(gate, {"again": 64}))
    return b.build(b.select_rows(b.add(y, b.paged_attention(y, y, y, layer=0, num_heads=2, num_kv_heads=2, head_dim=32))))


def found(program: Program, max_rows: dict[Rows, int] = MAX_ROWS) -> dict[int, int]:
    return find_windows(program, lower(program, lambda name: True), max_rows)


@pytest.mark.parametrize("width", [8192, 11008, 14336, 28672])
def test_wide_results_that_only_the_next_silu_mul_reads_get_windows(width: int) -> None:
    program = wide(width)
    (buffer, rows) = found(program).popitem()
    assert program.buffers[buffer].width == 2 * width
    assert windows.LEAST_ROWS <= rows < 512
    assert rows % windows.ROW_UNIT == 0
    assert rows * 4 * 2 * width <= windows.WINDOW_BYTES or rows == windows.LEAST_ROWS
    assert not found(program, {Rows.TOKENS: rows, Rows.LOGITS: 1}), "all rows fit"


def test_others_do_not() -> None:
    assert not found(wide(2048))
    assert not found(wide(8192, gate_twice=True))
    assert not found(wide(8192, between=True))
    assert not found(wide(8192, apart=True))


@pytest.mark.parametrize(
    "types", [(TensorType.F32,), (TensorType.Q4_1, TensorType.Q8_0, TensorType.F16), (TensorType.Q4_0,)], ids=["float", "mixed", "int4"]
)
@pytest.mark.parametrize("rows", [16, 48])
def test_no_bit_depends_on_windows(monkeypatch: pytest.MonkeyPatch, types: tuple[TensorType, ...], rows: int) -> None:
    """Steps of fewer rows than a window, as many, one more, and several windows with and without a rest."""
    model = LittleLlama(linear_types=types, biases=True, intermediate=224)
    program, tensors = model.build()
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, 500)

    def logits(num_threads: int) -> list[np.ndarray]:
        exe = compiled(program, tensors, num_threads)
        driver = Driver(exe)
        sequence = driver.sequence(tokens)
        result = [driver.run([(sequence, n)]) for n in (1, 5, 16, 17, 33, 48, 49, 96, 101, 120)]
        exe.close()
        return result

    want = logits(1)
    force(monkeypatch, rows)
    instructions = lower(program, lambda name: tensors[name].type is not TensorType.F32 and tensors[name].type is not TensorType.F16)
    assert set(find_windows(program, instructions, {Rows.TOKENS: MAX_TOKENS, Rows.LOGITS: MAX_TOKENS}).values()) == {rows}
    for num_threads in (1, 3):
        for got, expected in zip(logits(num_threads), want, strict=True):
            np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))


def compiled(program: Program, tensors: dict, num_threads: int) -> Executable:  # type: ignore[type-arg]
    options = CompileOptions(16, "fp16", MAX_TOKENS, MAX_TOKENS, program.max_model_len, num_threads)
    return get_backend("native").compile(program, tensors, options)


def test_profiles_of_windows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 16)
    program, tensors = LittleLlama(hidden=256, intermediate=4096).build()
    exe = compiled(program, tensors, 2)
    driver = Driver(exe)
    exe.set_profiling(True)  # type: ignore[attr-defined]
    began = time.perf_counter()
    for _ in range(5):
        driver.whole(np.arange(96))
    elapsed = time.perf_counter() - began
    seconds = exe.profile()  # type: ignore[attr-defined]
    exe.close()
    assert 0 < seconds["silu_mul"] < sum(seconds.values()) <= elapsed
    assert sum(seconds.values()) > seconds["linear"] > 0


def test_pairs_are_neighbours() -> None:
    """What the executor relies on: after a projection with a window comes the SiluMul that reads it."""
    program, _ = LittleLlama(num_layers=3, intermediate=8192).build()
    instructions = lower(program, lambda name: True)
    windowed = find_windows(program, instructions, MAX_ROWS)
    readers = [b for a, b in pairwise(instructions) if isinstance(a, LinearI) and a.out.buffer in windowed]
    assert len(readers) == len(windowed) == 3
    assert all(isinstance(reader, SiluMulI) and reader.gate.buffer in windowed for reader in readers)
