"""Lowering: which fusions happen, which must not, and that no two living operands share memory."""

from __future__ import annotations

from collections import Counter

import pytest

from octavo.backends.native.arena import Arena, quantised_parts, round_up, row_stride
from octavo.backends.native.instructions import (
    AddI,
    AttentionI,
    Instruction,
    LinearI,
    Quantised,
    QuantizeI,
    RMSNormI,
    RopeI,
    SiluMulI,
    WriteKVI,
    operands,
)
from octavo.backends.native.lower import lower
from octavo.program import Program, ProgramBuilder, RopeStyle, Rows, Value

WIDTH, HEADS, HEAD_DIM = 64, 2, 32


def llama(num_layers: int = 3, mlp: int = 96) -> Program:
    b = ProgramBuilder("llama", 128)
    x = b.embedding("embed", 96, WIDTH)
    for i in range(num_layers):
        h = b.rms_norm(x, f"{i}.n1", 1e-5)
        q, k, v = b.split(b.linear(h, {f"{i}.q": WIDTH, f"{i}.k": WIDTH, f"{i}.v": WIDTH}), [WIDTH] * 3)
        a = attend(b, rope(b, q), rope(b, k), v, i)
        x = b.add(x, b.linear(a, {f"{i}.o": WIDTH}))
        gate, up = b.split(b.linear(b.rms_norm(x, f"{i}.n2", 1e-5), {f"{i}.gate": mlp, f"{i}.up": mlp}), [mlp, mlp])
        x = b.add(x, b.linear(b.silu_mul(gate, up), {f"{i}.down": WIDTH}))
    return b.build(b.linear(b.rms_norm(b.select_rows(x), "n", 1e-5), {"embed": 96}))


def rope(b: ProgramBuilder, x: Value, head_dim: int = HEAD_DIM) -> Value:
    return b.rope(x, head_dim=head_dim, style=RopeStyle.INTERLEAVED, inv_freq=[1.0] * (head_dim // 2))


def attend(b: ProgramBuilder, q: Value, k: Value, v: Value, layer: int = 0) -> Value:
    return b.paged_attention(q, k, v, layer=layer, num_heads=HEADS, num_kv_heads=HEADS, head_dim=HEAD_DIM)


def kinds(instructions: list[Instruction]) -> Counter[type]:
    return Counter(type(i) for i in instructions)


def test_a_llama_layer_is_seven_instructions_around_its_four_projections() -> None:
    layers = 3
    count = kinds(lower(llama(layers), lambda name: True))
    assert count[LinearI] == 4 * layers + 1
    assert count[QuantizeI] == layers, "only attention's output is quantised on its own"
    assert count[AddI] == count[RopeI] == 0
    assert count[WriteKVI] == count[AttentionI] == count[SiluMulI] == layers
    assert count[RMSNormI] == 2 * layers + 1


def test_forms_follow_the_readers() -> None:
    integer = lower(llama(), lambda name: True)
    assert all(i.out is None and i.quantised for i in integer if isinstance(i, RMSNormI | SiluMulI))
    floats = lower(llama(), lambda name: False)
    assert all(i.out and i.quantised is None for i in floats if isinstance(i, RMSNormI | SiluMulI))
    mixed = lower(llama(), lambda name: name.endswith(".q"))
    first = next(i for i in mixed if isinstance(i, RMSNormI))
    assert first.out is not None, "k and v have float weights"
    assert first.quantised is not None, "q has integer weights"


def test_a_value_is_quantised_once_for_all_its_readers() -> None:
    b = ProgramBuilder("p", 128)
    x = b.embedding("e", 96, WIDTH)
    y = b.add(b.linear(x, {"a": WIDTH}), b.linear(x, {"b": WIDTH}))
    program = b.build(b.select_rows(b.add(y, attend(b, y, y, y))))
    assert kinds(lower(program, lambda name: True))[QuantizeI] == 1


def test_residual_of_two_projections_and_of_one_used_twice() -> None:
    b = ProgramBuilder("p", 128)
    x = b.embedding("e", 96, WIDTH)
    first, second = b.linear(x, {"a": WIDTH}), b.linear(x, {"b": WIDTH})
    both = b.add(first, second)  # the second can add the first
    twice = b.linear(both, {"c": WIDTH})
    y = b.add(b.add(both, twice), twice)  # twice is read again: no fusion
    program = b.build(b.select_rows(b.add(y, attend(b, y, y, y))))
    instructions = lower(program, lambda name: False)
    residuals = [i for i in instructions if isinstance(i, LinearI) and i.residual is not None]
    assert [(i.parts[0][0], i.residual) for i in residuals] == [("b", first)]
    assert residuals[0].out == both
    assert kinds(instructions)[AddI] == 3


def test_a_projection_is_not_moved_before_what_it_is_added_to() -> None:
    b = ProgramBuilder("p", 128)
    x = b.embedding("e", 96, WIDTH)
    early = b.linear(x, {"a": WIDTH})
    late = b.rms_norm(x, "n", 1e-5)
    y = b.add(early, late)
    program = b.build(b.select_rows(b.add(y, attend(b, y, y, y))))
    assert all(i.residual is None for i in lower(program, lambda name: False) if isinstance(i, LinearI))


def test_a_rotation_that_others_read_stays_an_instruction() -> None:
    b = ProgramBuilder("p", 128)
    x = b.embedding("e", 96, WIDTH)
    seen, hidden, other = rope(b, x), rope(b, x), rope(b, x, head_dim=64)
    a = attend(b, seen, hidden, x)
    c = attend(b, other, seen, seen, layer=1)
    program = b.build(b.select_rows(b.add(b.add(a, c), x)))
    instructions = lower(program, lambda name: False)
    assert [i.out for i in instructions if isinstance(i, RopeI)] == [seen, other]
    writes = [i for i in instructions if isinstance(i, WriteKVI)]
    assert writes[0].rope is not None
    assert writes[0].rope.out == hidden
    assert writes[1].rope is None


@pytest.mark.parametrize("integer", [lambda name: True, lambda name: False, lambda name: name < "1"])
@pytest.mark.parametrize("rows", [(1, 1), (7, 3), (512, 64)])
@pytest.mark.parametrize("window", [0, 2, 32])
@pytest.mark.parametrize("mlp", [32, 96])
def test_no_two_living_operands_share_memory(  # type: ignore[no-untyped-def]
    integer, rows: tuple[int, int], window: int, mlp: int
) -> None:
    program = llama(2, mlp)
    instructions = lower(program, integer)
    max_rows = {Rows.TOKENS: rows[0], Rows.LOGITS: rows[1]}
    pairs = [i for i, reader in enumerate(instructions[1:]) if isinstance(reader, SiluMulI)] if 0 < window < rows[0] else []
    windows = {operand.buffer: window for i in pairs for operand in operands(instructions[i])[1] if isinstance(operand, Value)}
    arena = Arena(program, instructions, max_rows, windows)

    def spans(operand: Value | Quantised) -> list[tuple[int, int]]:
        if isinstance(operand, Quantised):
            n, width = max_rows[operand.value.rows], operand.value.width
            q, *others = quantised_parts(arena, operand, n)
            return [(q, q + n * width), *((begin, begin + n * width // 8) for begin in others)]
        spec = program.buffers[operand.buffer]
        begin = arena.offset(operand)
        return [(begin, begin + 4 * row_stride(spec.width) * windows.get(operand.buffer, max_rows[spec.rows]))]

    owner: dict[int, object] = {}  # 64-byte line → the last one who wrote there
    order = [j for i in range(len(instructions)) for j in ((i, i + 1, i) if i in pairs else (i,))]  # two windows in turn
    for instruction in (instructions[i] for i in order):
        reads, writes = operands(instruction)
        for operand in reads:
            key = operand if isinstance(operand, Quantised) else operand.buffer
            assert all(owner[line] == key for begin, end in spans(operand) for line in range(begin // 64, -(-end // 64)))
        for operand in writes:
            key = operand if isinstance(operand, Quantised) else operand.buffer
            for begin, end in spans(operand):
                assert begin % 64 == 0
                assert end <= arena.num_bytes
                owner.update(dict.fromkeys(range(begin // 64, -(-end // 64)), key))
    begin, end = spans(program.logits)[0]
    assert all(owner[line] == program.logits.buffer for line in range(begin // 64, end // 64))


@pytest.mark.parametrize("window", [0, 128])
def test_the_arena_has_no_holes_where_a_7b_model_needs_most(window: int) -> None:
    """As many bytes as are alive at once, with the proportions of hidden 4096 and mlp 11008."""
    program = llama(3, 172)
    instructions = lower(program, lambda name: True)
    max_rows = {Rows.TOKENS: 512, Rows.LOGITS: 8}
    wide = {i.out.buffer for i in instructions if isinstance(i, LinearI) and i.out.width == 2 * 172}
    arena = Arena(program, instructions, max_rows, dict.fromkeys(wide, window) if window else {})

    def num_bytes(operand: Value | Quantised) -> int:
        if isinstance(operand, Quantised):
            n, width = max_rows[operand.value.rows], operand.value.width
            return quantised_parts(arena, operand, n)[3] - arena.offset(operand) + round_up(n * (width // 32) * 4, 64)
        spec = program.buffers[operand.buffer]
        rows = window if window and operand.buffer in wide else max_rows[spec.rows]
        return round_up(4 * row_stride(spec.width) * rows, 64)

    life: dict[Value | Quantised | int, tuple[int, int, int]] = {program.logits.buffer: (num_bytes(program.logits), 10**9, 0)}
    for time, instruction in enumerate(instructions):
        reads, writes = operands(instruction)
        both = window > 0 and isinstance(instruction, LinearI) and instruction.out.buffer in wide
        for operand in (*reads, *writes):
            key = operand if isinstance(operand, Quantised) else operand.buffer
            _, first, last = life.get(key, (0, time, time))
            life[key] = num_bytes(operand), min(first, time), max(last, time + both)
    most = max(sum(size for size, first, last in life.values() if first <= time <= last) for time in range(len(instructions)))
    assert arena.num_bytes == most


@pytest.mark.parametrize("width", [1, 16, 48, 576, 1008, 1024, 3072, 49152])
def test_rows_do_not_alias(width: int) -> None:
    assert row_stride(width) >= width
    assert row_stride(width) % 16 == 0
    assert row_stride(width) * 4 % 4096 or width == 1008
