"""Arrays that were made by changing those of the last step are those that would be made anew, whatever comes and goes in between."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.decoding import SamplingParams
from octavo.engine.scheduler_output import ScheduledSequence
from octavo.engine.steady_batch import SteadyBatch
from tests.engine.toy import BLOCK, VOCAB, ToyExecutable, toy_engine

PARAMS = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 1, 3]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
    max_tokens=st.integers(1, 70),
    min_tokens=st.sampled_from([0, 0, 1]),
    ignore_eos=st.booleans(),
    top_k=st.sampled_from([0, 5]),
    logprobs=st.sampled_from([None, None, 2]),
    logit_bias=st.sampled_from([None, None, {3: 1.0}]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5]),
)
JOBS = st.lists(st.tuples(st.integers(0, 60), st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=40), PARAMS), min_size=1, max_size=6)
"""(step of arrival, prompt, params)."""


def outputs_of(jobs: list[tuple[int, list[int], SamplingParams]], num_blocks: int, faulty: bool, steady: str) -> tuple[Any, int]:
    """What each request's branches were told, and how many steps changed arrays in place. ``steady``: never, or checked."""
    engine = toy_engine(num_blocks)
    executable, runner = engine.model.executable, engine.runner
    assert isinstance(executable, ToyExecutable)
    executable.nan_token = VOCAB - 1 if faulty else None
    executable.poisonous_token = VOCAB - 2 if faulty else None
    num_steady = 0
    advance = SteadyBatch.advance

    def checked(self: SteadyBatch, entries: list[ScheduledSequence]) -> bool:
        nonlocal num_steady
        if steady == "never" or not advance(self, entries):
            return False
        num_steady += 1
        step = runner.step_input(entries)
        for name in ("token_ids", "positions", "query_start_loc", "seq_lens", "slot_mapping", "logits_rows"):
            np.testing.assert_array_equal(getattr(self.step, name), getattr(step, name), err_msg=name)
        for mine, anew, length in zip(self.step.block_tables, step.block_tables, step.seq_lens.tolist(), strict=True):
            num_blocks = -(-length // BLOCK)
            np.testing.assert_array_equal(mine[:num_blocks], anew[:num_blocks])
        owners, batch = runner.choice_batch([entry.sequence for entry in entries], {})
        assert self.owners == owners
        for name in batch.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(self.batch, name), getattr(batch, name), err_msg=name)
        return True

    told: dict[str, Any] = {}
    SteadyBatch.advance = checked  # type: ignore[method-assign]
    try:
        for step in range(2000):
            for number, (at, prompt, params) in enumerate(jobs):
                if at == step:
                    engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
            for out in engine.step():
                if out.finished:
                    told[out.request_id] = (out.error, [(b.text, b.token_ids, b.logprobs, b.finish_reason) for b in out.outputs])
            engine.check_integrity()
            if not engine.has_unfinished_requests and step > max(at for at, _, _ in jobs):
                return told, num_steady
    finally:
        SteadyBatch.advance = advance  # type: ignore[method-assign]
    raise AssertionError("it never ends")


@settings(deadline=None, max_examples=30)
@given(jobs=JOBS, num_blocks=st.sampled_from([12, 20, 200]), faulty=st.booleans())
def test_it_is_the_batch_made_anew(jobs: list[tuple[int, list[int], SamplingParams]], num_blocks: int, faulty: bool) -> None:
    assert outputs_of(jobs, num_blocks, faulty, "checked")[0] == outputs_of(jobs, num_blocks, faulty, "never")[0]


def test_nearly_all_steps_of_plain_decoding_are_steady() -> None:
    params = SamplingParams(temperature=0, max_tokens=130, ignore_eos=True)
    jobs = [(0, [i + 1] * (3 + 5 * i), params) for i in range(4)]
    assert outputs_of(jobs, 200, False, "checked")[1] >= 120


def test_a_block_that_is_exchanged_in_the_midst_of_it_is_seen() -> None:
    engine = toy_engine(200)
    executable, kv = engine.model.executable, engine.scheduler.kv
    assert isinstance(executable, ToyExecutable)
    engine.add_request("0", {"prompt_token_ids": [*range(1, 21)]}, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    for _ in range(3):
        engine.step()
    steady = engine.runner._steady
    assert steady is not None
    table = engine.scheduler.running[0].table
    old, own = table.blocks[1], kv.pool.allocate()
    executable.slots[own.block_id] = executable.slots[old.block_id]
    executable.slots[old.block_id] = -5
    table.replace(1, own)
    kv.pool.release(old)
    engine.step()
    assert engine.runner._steady is steady
    assert steady.step.block_tables[0, :2].tolist() == list(table.ids)
    assert steady.step.slot_mapping.tolist() == [own.block_id * BLOCK + 22 - BLOCK]
