"""What must be refused: every field of a step and of a choice batch, blocks, and weights that do not fit.

The error is a ``ValueError`` that names the field, the index and the value, and nothing has changed after it.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from octavo.backends.base import Backend, ChoiceBatch, CompileOptions, Executable, StepInput
from octavo.weights.tensor import TensorType

from .choices import choice_batch
from .programs import BLOCK_SIZE, LittleLlama, compile_program
from .steps import Sequence, make_step
from .tensors import float_tensor

NUM_BLOCKS = 12
MODEL = LittleLlama(vocab_size=40, hidden=32, intermediate=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32, max_model_len=128)


@pytest.fixture(scope="module")
def exe(backend: Backend) -> Executable:
    exe = compile_program(backend, *MODEL.build(), max_tokens=48, max_logits_rows=4)
    exe.allocate_kv(NUM_BLOCKS, fill_nan=True)
    return exe


def good_step() -> StepInput:
    """Two sequences: 17 new tokens, and 3 tokens after 20."""
    a = Sequence(list(range(17)), [3, 7])
    b = Sequence(list(range(23)), [0, 11], 20)
    return make_step([(a, 17), (b, 3)], BLOCK_SIZE, logits_rows=[16, 19])


def changed(step: StepInput, field: str, index: Any, value: int) -> StepInput:
    array = getattr(step, field).copy()
    array[index] = value
    return replace(step, **{field: array})


BAD_VALUES = [
    ("token_ids", 5, -1, "5"),
    ("token_ids", 19, 40, "19"),
    ("token_ids", 0, 2**31 - 1, "0"),
    ("positions", 3, 4, "3"),
    ("positions", 0, -1, "0"),
    ("positions", 17, 0, "17"),
    ("query_start_loc", 0, 1, "0"),
    ("query_start_loc", 1, 0, "1"),
    ("query_start_loc", 1, 20, "2"),
    ("query_start_loc", 1, -5, "1"),
    ("query_start_loc", 2, 19, "2"),
    ("query_start_loc", 2, 2**31 - 1, "2"),
    ("seq_lens", 0, 16, "0"),
    ("seq_lens", 1, 129, "1"),
    ("seq_lens", 1, -(2**31), "1"),
    ("seq_lens", 1, 127, "1"),
    ("block_tables", (0, 1), -1, "0, 1"),
    ("block_tables", (1, 0), NUM_BLOCKS, "1, 0"),
    ("block_tables", (1, 1), 2**31 - 1, "1, 1"),
    ("slot_mapping", 0, 0, "0"),
    ("slot_mapping", 16, -1, "16"),
    ("slot_mapping", 19, 2**62, "19"),
    ("logits_rows", 1, 20, "1"),
    ("logits_rows", 0, -1, "0"),
    ("logits_rows", 1, 16, "1"),
    ("logits_rows", 1, 3, "1"),
]


@pytest.mark.parametrize(("field", "index", "value", "named"), BAD_VALUES)
def test_bad_value_in_a_step(exe: Executable, field: str, index: Any, value: int, named: str) -> None:
    step = changed(good_step(), field, index, value)
    reported = int(getattr(step, field)[tuple(int(i) for i in named.split(","))])
    with pytest.raises(ValueError, match=re.escape(f"{field}[{named}] = {reported} is invalid")):
        exe.run(step)


LENGTHS = [
    ("positions", 19),
    ("slot_mapping", 21),
    ("query_start_loc", 2),
    ("query_start_loc", 4),
    ("block_tables", 1),
    ("block_tables", 3),
]


@pytest.mark.parametrize(("field", "length"), LENGTHS)
def test_wrong_number_of_entries(exe: Executable, field: str, length: int) -> None:
    array = getattr(good_step(), field)
    array = np.ascontiguousarray(np.resize(array, (length, *array.shape[1:])))
    with pytest.raises(ValueError, match=f"{field} has {length} entries"):
        exe.run(replace(good_step(), **{field: array}))


def test_more_than_it_was_compiled_for(exe: Executable) -> None:
    with pytest.raises(ValueError, match=r"token_ids has 49 entries.*max_tokens=48"):
        exe.run(make_step([(Sequence([1] * 49, [0, 1, 2, 3]), 49)], BLOCK_SIZE, [0]))
    with pytest.raises(ValueError, match=r"logits_rows has 5 entries.*max_logits_rows=4"):
        exe.run(make_step([(Sequence([1] * 9, [0]), 9)], BLOCK_SIZE, range(5)))


@pytest.mark.parametrize("field", ["token_ids", "positions", "query_start_loc", "seq_lens", "block_tables", "slot_mapping", "logits_rows"])
def test_wrong_kind_of_array(exe: Executable, field: str) -> None:
    array = getattr(good_step(), field)
    for wrong in (array.astype(np.float32), array.astype(np.int16), np.stack([array, array]), np.repeat(array, 2, axis=-1)[..., ::2]):
        with pytest.raises((ValueError, TypeError), match=field):
            exe.run(replace(good_step(), **{field: wrong}))


def test_a_refused_step_changes_nothing_and_the_next_one_runs(exe: Executable) -> None:
    exe.allocate_kv(NUM_BLOCKS, fill_nan=False)
    before = [exe.read_block(b) for b in range(NUM_BLOCKS)]
    with pytest.raises(ValueError, match="token_ids"):
        exe.run(changed(good_step(), "token_ids", 19, 1000))
    assert all(np.array_equal(exe.read_block(b), before[b]) for b in range(NUM_BLOCKS))
    assert np.isfinite(exe.run(good_step())).all()


def test_no_storage_no_step(backend: Backend) -> None:
    exe = compile_program(backend, *MODEL.build(), max_tokens=48, max_logits_rows=4)
    with pytest.raises(ValueError, match=r"block_tables\[0, 0\] = 3 is invalid"):
        exe.run(good_step())


def test_an_empty_step_has_no_logits(exe: Executable) -> None:
    ints = np.zeros(0, np.int32)
    step = StepInput(ints, ints, np.zeros(1, np.int32), ints, np.zeros((0, 4), np.int32), np.zeros(0, np.int64), ints)
    assert exe.run(step).shape == (0, 40)


@pytest.mark.parametrize("block", [-1, NUM_BLOCKS, 10**9])
def test_blocks_out_of_range(exe: Executable, block: int) -> None:
    exe.allocate_kv(NUM_BLOCKS)
    data = np.zeros(exe.kv_block_bytes, np.uint8)
    with pytest.raises(ValueError, match=str(block)):
        exe.read_block(block)
    with pytest.raises(ValueError, match=str(block)):
        exe.write_block(block, data)
    for pair in ([block, 0], [0, block]):
        with pytest.raises(ValueError, match=str(block)):
            exe.copy_blocks(np.array([[1, 2], pair], np.int32))


def test_block_data_of_another_size(exe: Executable) -> None:
    exe.allocate_kv(NUM_BLOCKS)
    with pytest.raises((ValueError, TypeError), match="data"):
        exe.write_block(0, np.zeros(exe.kv_block_bytes - 1, np.uint8))
    with pytest.raises((ValueError, TypeError), match="pairs"):
        exe.copy_blocks(np.zeros((2, 3), np.int32))


def test_missing_and_misshapen_weights(backend: Backend) -> None:
    program, tensors = MODEL.build()
    for name in ("embed", "0.q", "out_norm"):
        without = {n: t for n, t in tensors.items() if n != name}
        with pytest.raises(ValueError, match=re.escape(repr(name)) + ".*missing"):
            compile_program(backend, program, without)
    wrong = tensors | {"0.up": float_tensor("0.up", np.zeros((33, 32)), TensorType.F16)}
    with pytest.raises(ValueError, match=r"'0\.up'.*\(33, 32\).*\(32, 32\)"):
        compile_program(backend, program, wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", 0), ("max_logits_rows", 0), ("num_threads", 0), ("max_model_len", 0), ("max_model_len", 129), ("kv_dtype", "fp8")],
)
def test_options_that_make_no_sense(backend: Backend, field: str, value: Any) -> None:
    program, tensors = MODEL.build()
    options = replace(CompileOptions(BLOCK_SIZE, "fp16", 16, 16, 128, 1), **{field: value})
    with pytest.raises(ValueError, match=field):
        backend.compile(program, tensors, options)


BAD_CHOICES = [
    ("rows", 1, 2),
    ("rows", 0, -1),
    ("temperature", 2, -0.5),
    ("temperature", 0, np.nan),
    ("temperature", 0, np.inf),
    ("top_k", 1, -1),
    ("top_p", 0, 0.0),
    ("top_p", 2, 1.5),
    ("top_p", 2, np.nan),
    ("min_p", 1, -0.1),
    ("min_p", 1, 1.1),
    ("num_logprobs", 0, -2),
    ("edit_choices", 1, 3),
    ("edit_choices", 0, -1),
    ("edit_choices", 1, 0),
    ("edit_tokens", 1, 40),
    ("edit_tokens", 0, -1),
    ("typical_p", 1, 0.0),
    ("typical_p", 0, 1.5),
    ("repetition_penalty", 2, 0.0),
    ("repetition_penalty", 0, np.inf),
    ("frequency_penalty", 1, np.nan),
    ("presence_penalty", 0, -np.inf),
    ("report_rows", 2, 2),
    ("count_choices", 1, 3),
    ("count_choices", 1, 0),
    ("count_tokens", 0, 40),
    ("counts", 1, -1),
    ("allowed_choices", 0, -1),
    ("allowed_tokens", 1, 40),
]


def good_choices() -> ChoiceBatch:
    edits = {"edit_choices": [1, 2], "edit_tokens": [5, 6], "edit_values": [1.0, -1.0]}
    counted = {"count_choices": [1, 2], "count_tokens": [5, 6], "counts": [1, 0]}
    allowed = {"allowed_choices": [1, 1], "allowed_tokens": [5, 6]}
    penalties = {"repetition_penalty": 1.1, "frequency_penalty": 0.1, "presence_penalty": 0.1}
    return choice_batch([0, 1, 1], temperature=[0.0, 1.0, 0.7], typical_p=0.9, report_rows=0, **penalties, **edits, **counted, **allowed)


@pytest.mark.parametrize(("field", "index", "value"), BAD_CHOICES)
def test_bad_value_in_a_choice(exe: Executable, field: str, index: int, value: float) -> None:
    batch = good_choices()
    array = getattr(batch, field).copy()
    array[index] = value
    if field.endswith("_choices") and value == 0:
        array[0] = 2  # 2, 0: not sorted
    with pytest.raises(ValueError, match=re.escape(f"{field}[{index}] = ")):
        exe.choose(np.zeros((2, 40), np.float32), replace(batch, **{field: array}))


def test_choice_arrays_of_unequal_length(exe: Executable) -> None:
    logits, batch = np.zeros((2, 40), np.float32), good_choices()
    independent = ("rows", "edit_choices", "count_choices", "allowed_choices")
    for field in (f.name for f in fields(batch) if f.name not in independent):
        with pytest.raises((ValueError, TypeError), match=field):
            exe.choose(logits, replace(batch, **{field: np.resize(getattr(batch, field), 7)}))
