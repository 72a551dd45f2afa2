"""The builder writes programs down and refuses shapes that do not fit."""

from __future__ import annotations

import pytest

from octavo.program import KVSpec, Linear, ProgramBuilder, RopeStyle, Rows, inputs_of, weights_of


def build() -> ProgramBuilder:
    return ProgramBuilder("test", 128)


def test_a_program_knows_its_weights_cache_and_result() -> None:
    b = build()
    x = b.embedding("e", 50, 32)
    q, k, v = b.split(b.linear(x, {"q": 32, "k": 16, "v": 16}, [None, "kb", None]), [32, 16, 16])
    y = b.paged_attention(q, k, v, layer=0, num_heads=4, num_kv_heads=2, head_dim=8)
    program = b.build(b.linear(b.select_rows(b.add(x, y)), {"e": 50}))
    assert program.kv == KVSpec(1, 2, 8)
    assert program.vocab_size == 50
    assert program.logits.rows is Rows.LOGITS
    assert program.weights == {"e": (50, 32), "q": (32, 32), "k": (16, 32), "v": (16, 32), "kb": (16,)}
    written = {program.ops[0].out.buffer}
    for op in program.ops[1:]:
        assert all(value.buffer in written for value in inputs_of(op)), "an operation reads what was not written"
        assert op.out.buffer not in written, "a buffer is written twice"
        written.add(op.out.buffer)
    linear = next(op for op in program.ops if isinstance(op, Linear))
    assert weights_of(linear) == ("q", "k", "v", "kb")
    assert "PagedAttention" in str(program)


def test_shapes_that_do_not_fit_are_refused() -> None:
    b = build()
    x = b.embedding("e", 50, 32)
    y = b.embedding("f", 50, 16)
    with pytest.raises(ValueError, match="add"):
        b.add(x, y)
    with pytest.raises(ValueError, match="split"):
        b.split(x, [16, 17])
    with pytest.raises(ValueError, match="heads"):
        b.paged_attention(x, y, y, layer=0, num_heads=4, num_kv_heads=3, head_dim=8)
    with pytest.raises(ValueError, match="rope"):
        b.rope(x, head_dim=12, style=RopeStyle.INTERLEAVED, inv_freq=[1.0])
    with pytest.raises(ValueError, match="used as"):
        b.linear(x, {"e": 32})
    with pytest.raises(ValueError, match="select_rows"):
        b.build(x)
