"""Refuses step and choice arrays that do not fit what was compiled or allocated: ``ValueError`` names field, index, value."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from octavo.backends.arrays import CHOICE_ARRAYS, ENTRY_ARRAYS, OPTIONAL_CHOICE_ARRAYS, STEP_ARRAYS, check_array
from octavo.backends.base import ChoiceBatch, CompileOptions, StepInput


def _length(name: str, array: npt.NDArray[Any], length: int, of: str) -> None:
    if len(array) != length:
        raise ValueError(f"{name} has {len(array)} entries, but there are {length} {of}")


def _fail(name: str, index: Any, value: Any, hint: str) -> NoReturn:
    where = ", ".join(str(int(i)) for i in np.atleast_1d(index))
    raise ValueError(f"{name}[{where}] = {value} is invalid: {hint}")


def _all(name: str, array: npt.NDArray[Any], valid: npt.NDArray[np.bool_], hint: str) -> None:
    """Reports the first entry where ``valid`` is false; a shorter ``valid`` speaks of the last entries."""
    if not valid.all():
        index = np.argwhere(~valid)[0]
        index[0] += len(array) - len(valid)
        _fail(name, index, array[tuple(index)], hint)


def check_step(step: StepInput, options: CompileOptions, vocab_size: int, num_blocks: int) -> None:
    for name, dtype, ndim in STEP_ARRAYS:
        check_array(name, getattr(step, name), dtype, ndim)
    num_tokens, num_seqs = len(step.token_ids), len(step.seq_lens)
    if num_tokens > options.max_tokens:
        raise ValueError(f"token_ids has {num_tokens} entries, but the program was compiled for max_tokens={options.max_tokens}")
    if len(step.logits_rows) > options.max_logits_rows:
        raise ValueError(
            f"logits_rows has {len(step.logits_rows)} entries, but the program was compiled for max_logits_rows={options.max_logits_rows}"
        )
    for name in ("positions", "slot_mapping"):
        _length(name, getattr(step, name), num_tokens, "token_ids")
    _length("query_start_loc", step.query_start_loc, num_seqs + 1, "seq_lens plus one")
    _length("block_tables", step.block_tables, num_seqs, "seq_lens")

    starts = step.query_start_loc.astype(np.int64)
    if starts[0] != 0:
        _fail("query_start_loc", 0, starts[0], "the first sequence starts at row 0")
    _all("query_start_loc", starts, np.diff(starts) > 0, "every sequence needs at least one row")
    if starts[-1] != num_tokens:
        _fail("query_start_loc", num_seqs, starts[-1], f"the last sequence ends at row {num_tokens}")

    _all("token_ids", step.token_ids, (step.token_ids >= 0) & (step.token_ids < vocab_size), f"must be in [0, {vocab_size})")
    lens = step.seq_lens.astype(np.int64)
    _all("seq_lens", lens, lens >= np.diff(starts), "shorter than the sequence's rows of this step")
    _all("seq_lens", lens, lens <= options.max_model_len, f"more than max_model_len={options.max_model_len}")
    size = options.block_size
    needed = -(-lens // size)
    width = step.block_tables.shape[1]
    _all("seq_lens", lens, needed <= width, f"needs more blocks than the {width} columns of block_tables")
    unread = np.arange(width)[None, :] >= needed[:, None]
    inside = (step.block_tables >= 0) & (step.block_tables < num_blocks)
    _all("block_tables", step.block_tables, unread | inside, f"must be in [0, {num_blocks})")
    rows = np.arange(num_tokens)
    owner = np.repeat(np.arange(num_seqs), np.diff(starts))
    expected = lens[owner] - (starts[owner + 1] - rows)
    _all("positions", step.positions, step.positions == expected, "positions are consecutive and end at seq_lens - 1")
    slots = step.block_tables[owner, expected // size].astype(np.int64) * size + expected % size
    _all("slot_mapping", step.slot_mapping, step.slot_mapping == slots, "is not the slot that block_tables gives for the position")

    wanted = step.logits_rows.astype(np.int64)
    _all("logits_rows", wanted, (wanted >= 0) & (wanted < num_tokens), f"must be in [0, {num_tokens})")
    _all("logits_rows", wanted, np.diff(wanted) > 0, "must be ascending")


def check_choices(logits: npt.NDArray[np.float32], batch: ChoiceBatch) -> None:
    check_array("logits", logits, np.float32, 2)
    num_rows, vocab_size = logits.shape
    for name, choice_dtype in CHOICE_ARRAYS:
        check_array(name, getattr(batch, name), choice_dtype, 1)
        _length(name, getattr(batch, name), len(batch.rows), "rows")
    for name, optional_dtype in OPTIONAL_CHOICE_ARRAYS:
        check_array(name, getattr(batch, name), optional_dtype, 1)
        if len(getattr(batch, name)):
            _length(name, getattr(batch, name), len(batch.rows), "rows")

    _all("rows", batch.rows, (batch.rows >= 0) & (batch.rows < num_rows), f"must be in [0, {num_rows})")
    t = batch.temperature
    _all("temperature", t, np.isfinite(t) & (t >= 0), "must be finite and not negative")
    _all("top_k", batch.top_k, batch.top_k >= 0, "must not be negative (0 keeps all)")
    _all("top_p", batch.top_p, (batch.top_p > 0) & (batch.top_p <= 1), "must be in (0, 1]")
    _all("min_p", batch.min_p, (batch.min_p >= 0) & (batch.min_p <= 1), "must be in [0, 1]")
    _all("num_logprobs", batch.num_logprobs, batch.num_logprobs >= -1, "must be -1 (none) or more")
    t = batch.typical_p
    _all("typical_p", t, (t > 0) & (t <= 1), "must be in (0, 1]")
    r = batch.repetition_penalty
    _all("repetition_penalty", r, np.isfinite(r) & (r > 0), "must be finite and above 0")
    for name in ("frequency_penalty", "presence_penalty"):
        _all(name, getattr(batch, name), np.isfinite(getattr(batch, name)), "must be finite")
    rows = batch.report_rows
    _all("report_rows", rows, (rows >= 0) & (rows < num_rows), f"must be in [0, {num_rows})")
    for arrays in ENTRY_ARRAYS:
        (choices_name, _), (tokens_name, _) = arrays[:2]
        choices, tokens = getattr(batch, choices_name), getattr(batch, tokens_name)
        for name, entry_dtype in arrays:
            check_array(name, getattr(batch, name), entry_dtype, 1)
            _length(name, getattr(batch, name), len(choices), choices_name)
        _all(choices_name, choices, (choices >= 0) & (choices < len(batch.rows)), f"must be in [0, {len(batch.rows)})")
        _all(choices_name, choices, np.diff(choices) >= 0, "must be sorted by choice")
        _all(tokens_name, tokens, (tokens >= 0) & (tokens < vocab_size), f"must be in [0, {vocab_size})")
    _all("counts", batch.counts, batch.counts >= 0, "must not be negative")
