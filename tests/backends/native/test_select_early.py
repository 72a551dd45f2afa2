"""Selections move up: what is computed for logits rows only, what must not be, and that no bit depends on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from octavo.backends import get_backend
from octavo.backends.base import CompileOptions
from octavo.backends.native import executable
from octavo.backends.native.instructions import AddI, AttentionI, QuantizeI, SelectRowsI, WriteKVI
from octavo.backends.native.lower import lower
from octavo.backends.native.select_early import select_early
from octavo.program import Add, Linear, PagedAttention, Program, ProgramBuilder, RopeStyle, Rows, SelectRows, Value, inputs_of
from octavo.weights.tensor import TensorType

from ...conformance.programs import LittleLlama
from ...conformance.steps import Driver, Sequence

WIDTH = 64


def check_rows(program: Program) -> None:
    """Values say which rows their buffers have, are written before they are read, and operations keep rows apart."""
    written: set[int] = set()
    for op in program.ops:
        for value in (*inputs_of(op), op.out):
            spec = program.buffers[value.buffer]
            assert spec.rows is value.rows
            assert value.offset + value.width <= spec.width
        assert {value.buffer for value in inputs_of(op)} <= written
        assert op.out.buffer not in written
        written.add(op.out.buffer)
        if isinstance(op, SelectRows):
            assert (op.x.rows, op.out.rows, op.x.width) == (Rows.TOKENS, Rows.LOGITS, op.out.width)
        elif isinstance(op, PagedAttention):
            assert op.q.rows is op.out.rows
            assert op.k.rows is op.v.rows is Rows.TOKENS
        else:
            assert all(value.rows is op.out.rows for value in inputs_of(op))
    assert program.logits.buffer in written
    assert program.logits.rows is Rows.LOGITS


def moved(program: Program) -> Program:
    check_rows(program)
    result = select_early(program)
    check_rows(result)
    assert result.weights == program.weights
    return result


def attend(b: ProgramBuilder, q: Value, k: Value, v: Value, layer: int = 0) -> Value:
    return b.paged_attention(q, k, v, layer=layer, num_heads=2, num_kv_heads=2, head_dim=32)


def test_the_last_layer_is_computed_for_logits_rows_and_the_others_for_all() -> None:
    program = moved(LittleLlama(num_layers=3).build()[0])
    attentions = [op for op in program.ops if isinstance(op, PagedAttention)]
    assert [op.out.rows for op in attentions] == [Rows.TOKENS, Rows.TOKENS, Rows.LOGITS]
    after = program.ops[program.ops.index(attentions[-1]) :]
    assert all(op.out.rows is Rows.LOGITS for op in after)
    assert not any(isinstance(op, SelectRows) for op in after)
    assert sum(isinstance(op, SelectRows) for op in program.ops) == 2, "of q and of what is added to"


def test_fusions_stay() -> None:
    before = LittleLlama(num_layers=3).build()[0]
    old, new = lower(before, lambda name: True), lower(moved(before), lambda name: True)
    assert not any(isinstance(i, AddI) for i in new)
    assert [type(i) for i in new if not isinstance(i, SelectRowsI)] == [type(i) for i in old if not isinstance(i, SelectRowsI)]
    quantised = [i for i in new if isinstance(i, QuantizeI)]
    assert [i.x.rows for i in quantised] == [Rows.TOKENS, Rows.TOKENS, Rows.LOGITS]
    last = [i for i in new if isinstance(i, AttentionI | WriteKVI)][-2:]
    assert isinstance(last[0], WriteKVI)
    assert last[0].rope is not None
    assert isinstance(last[1], AttentionI)
    assert last[1].rope is not None, "q is rotated by attention"


def test_a_projection_of_q_alone_is_for_logits_rows_too() -> None:
    b = ProgramBuilder("p", 128)
    x = b.embedding("e", 96, WIDTH)
    h = b.rms_norm(x, "n", 1e-5)
    q = b.rope(b.linear(h, {"q": WIDTH}), head_dim=32, style=RopeStyle.INTERLEAVED, inv_freq=[1.0] * 16)
    a = attend(b, q, b.linear(h, {"k": WIDTH}), b.linear(h, {"v": WIDTH}))
    program = moved(b.build(b.select_rows(b.add(x, b.linear(a, {"o": WIDTH})))))
    rows = {op.weights: op.out.rows for op in program.ops if isinstance(op, Linear)}
    assert rows == {("q",): Rows.LOGITS, ("k",): Rows.TOKENS, ("v",): Rows.TOKENS, ("o",): Rows.LOGITS}
    assert [op.x for op in program.ops if isinstance(op, SelectRows)] == [h, x]


def test_what_all_rows_are_read_of_stays_whole() -> None:
    b = ProgramBuilder("p", 128)
    x = b.embedding("e", 96, WIDTH)
    y = b.linear(x, {"a": WIDTH})  # k and v, too
    z = b.add(y, attend(b, y, y, y))  # read by the next layer's k
    last = attend(b, y, z, y, layer=1)
    attend(b, y, y, x, layer=2)  # read by nobody
    program = moved(b.build(b.select_rows(b.add(last, z))))
    assert [op.out.rows for op in program.ops if isinstance(op, PagedAttention)] == [Rows.TOKENS, Rows.LOGITS, Rows.TOKENS]
    assert [op.out.rows for op in program.ops if isinstance(op, Add)] == [Rows.TOKENS, Rows.LOGITS]
    assert [op.x for op in program.ops if isinstance(op, SelectRows)] == [y, z]


def test_selections_of_columns_and_of_the_same_twice() -> None:
    b = ProgramBuilder("p", 128)
    x = b.embedding("e", 96, WIDTH)
    attend(b, x, x, x)
    left, right = b.split(b.linear(x, {"a": 2 * WIDTH}), [WIDTH, WIDTH])
    chosen = b.select_rows(b.silu_mul(left, right))
    half, again = b.select_rows(right).columns(32, 32), b.select_rows(x)
    program = moved(b.build(b.add(b.add(chosen, again), b.linear(half, {"c": WIDTH}))))
    assert [op.x for op in program.ops if isinstance(op, SelectRows)] == [x]
    (narrow,) = (op for op in program.ops if isinstance(op, Linear) and op.weights == ("c",))
    assert (narrow.x.buffer, narrow.x.offset) == (right.buffer, WIDTH + 32)


def test_logits_that_are_a_selection() -> None:
    b = ProgramBuilder("p", 128)
    x = b.embedding("e", 96, WIDTH)
    program = moved(b.build(b.select_rows(attend(b, x.columns(0, 64), x, x))))
    assert program.ops[-1].out.buffer == program.logits.buffer


TYPES: list[tuple[TensorType, ...]] = [(TensorType.F32,), (TensorType.Q4_1, TensorType.Q8_0, TensorType.F16), (TensorType.Q4_0,)]


@pytest.mark.parametrize("types", TYPES, ids=["float", "mixed", "int4"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_no_bit_depends_on_which_logits_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, types: tuple[TensorType, ...], num_threads: int
) -> None:
    """Against a lowering that leaves selections where they are, with a shared prefix, and steps that ask for none, some and all."""
    model = LittleLlama(linear_types=types, biases=True, num_heads=6)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, model.vocab_size, (6, 1000))
    ways: list[Callable[[Program], Program]] = [lambda program: program, select_early]
    steps: list[tuple[list[int], list[int]]] = [([560, 0, 0, 0, 0, 0], []), ([20, 30, 0, 0, 0, 0], [3, 4, 5, 6, 19, 20, 49])]
    steps += [([1, 1, 1, 1, 1, 1], rows) for rows in ([0, 1, 2, 3, 4, 5], [0, 2, 3, 5], [])]
    for _ in range(8):
        counts = [int(n) for n in rng.integers(1, 40, 6) * (rng.random(6) < 0.7)]
        keep = rng.random(sum(counts)) < rng.choice([0.05, 0.6, 0.95])
        if sum(counts):
            steps.append((counts, np.flatnonzero(keep).tolist()))

    def logits(select: Callable[[Program], Program]) -> list[np.ndarray]:
        monkeypatch.setattr(executable, "select_early", select)
        program, tensors = model.build()
        exe = get_backend("native").compile(program, tensors, CompileOptions(16, "fp16", 600, 600, program.max_model_len, num_threads))
        driver = Driver(exe, 300)
        first = driver.sequence(tokens[0])
        sequences: list[Sequence] = [first, driver.sequence(tokens[1])]
        results = []
        for counts, rows in steps:
            if first.num_computed >= 544 and len(sequences) == 2:
                sequences += [driver.fork(first, 544, tokens[i][544:]) for i in range(2, 6)]
            chunks = [(s, n) for s, n in zip(sequences, counts, strict=False) if n]
            results.append(driver.run(chunks, rows))
        exe.close()
        return results

    whole, early = (logits(way) for way in ways)
    assert any(len(rows) > 1 for rows in early)
    for got, expected, (_, rows) in zip(early, whole, steps, strict=True):
        assert len(got) == len(rows)
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))
