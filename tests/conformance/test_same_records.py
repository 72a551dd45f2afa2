"""A record whose arrays have changed since the last call is taken as it is now: like a new one with the same contents."""

from __future__ import annotations

from copy import deepcopy

import numpy as np

from octavo.backends.base import Backend, Choices

from .choices import choice_batch
from .programs import LittleLlama, compile_program
from .steps import Sequence, make_step


def equal(a: Choices, b: Choices) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in a.__dataclass_fields__)


def test_steps_and_choices_changed_in_place(backend: Backend) -> None:
    model = LittleLlama(vocab_size=64, hidden=32, intermediate=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32)
    exe, anew = (compile_program(backend, *model.build(), max_tokens=64, max_logits_rows=8, num_threads=2) for _ in range(2))
    rng = np.random.default_rng(0)
    exe.allocate_kv(8)
    anew.allocate_kv(8)
    sequences = [Sequence(rng.integers(0, 64, 40).tolist(), [i, i + 2, i + 4]) for i in range(2)]
    step = make_step([(s, 1) for s in sequences], exe.options.block_size, [0, 1])
    batch = choice_batch([0, 1, 1], temperature=50.0, seed=3, position=0, num_logprobs=-1)
    for position in range(40):
        for s in sequences:
            s.num_computed = position
        new_step = make_step([(s, 1) for s in sequences], exe.options.block_size, [0, 1], spare_columns=3 - position // 16)
        for name in ("token_ids", "positions", "seq_lens", "slot_mapping"):
            getattr(step, name)[:] = getattr(new_step, name)
        step.block_tables[:, : position // 16 + 1] = new_step.block_tables[:, : position // 16 + 1]
        logits = exe.run(step)
        np.testing.assert_array_equal(logits, anew.run(new_step))
        batch.position[:] = position
        batch.num_logprobs[:] = (position % 3 - 1, position % 5 - 1, -1)
        assert equal(exe.choose(logits, batch), exe.choose(logits, deepcopy(batch)))
    first = exe.choose(logits, batch)
    kept = deepcopy(first)
    batch.rows[:] = (1, 0, 0)
    batch.temperature[:] = 0.0
    assert not np.array_equal(exe.choose(logits, batch).token_ids, kept.token_ids)
    assert equal(first, kept), "what was returned is the caller's"
