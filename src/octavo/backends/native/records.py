"""``StepInput`` and ``ChoiceBatch`` as native calls take them: bound once, and seen with whatever their arrays hold at each call.

Handing over two dozen arrays costs a small step more than what is done with them. So the executable keeps what it was given last, and
binds anew only what is another record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from octavo import _native
from octavo.backends.base import ChoiceBatch, Float32Array, Int32Array, StepInput

_STEP_DTYPES = (
    ("token_ids", np.int32, 1),
    ("positions", np.int32, 1),
    ("query_start_loc", np.int32, 1),
    ("seq_lens", np.int32, 1),
    ("block_tables", np.int32, 2),
    ("slot_mapping", np.int64, 1),
    ("logits_rows", np.int32, 1),
)
_CHOICE_DTYPES = (
    ("rows", np.int32, 1),
    ("temperature", np.float32, 1),
    ("top_k", np.int32, 1),
    ("top_p", np.float32, 1),
    ("min_p", np.float32, 1),
    ("seed", np.uint64, 1),
    ("branch", np.uint32, 1),
    ("position", np.uint32, 1),
    ("num_logprobs", np.int32, 1),
    ("typical_p", np.float32, 1),
    ("repetition_penalty", np.float32, 1),
    ("frequency_penalty", np.float32, 1),
    ("presence_penalty", np.float32, 1),
    ("report_rows", np.int32, 1),
    ("edit_choices", np.int32, 1),
    ("edit_tokens", np.int32, 1),
    ("edit_values", np.float32, 1),
    ("count_choices", np.int32, 1),
    ("count_tokens", np.int32, 1),
    ("counts", np.int32, 1),
    ("allowed_choices", np.int32, 1),
    ("allowed_tokens", np.int32, 1),
)


@dataclass(frozen=True, slots=True)
class LastStep:
    """The step that was run last, and what need not be made again if the next one is the same record with changed contents."""

    step: StepInput
    native: _native.Step
    logits: Float32Array


@dataclass(frozen=True, slots=True)
class LastBatch:
    """The same of the choices made last. ``nothing_asked``: the fields of ``Choices`` behind the ids if no log-probabilities are wanted."""

    batch: ChoiceBatch
    native: _native.Choices
    nothing_asked: tuple[Float32Array, Int32Array, Int32Array, Float32Array]


def nothing_asked(count: int) -> tuple[Float32Array, Int32Array, Int32Array, Float32Array]:
    none = (count, 0)
    return np.full(count, np.nan, np.float32), np.zeros(count, np.int32), np.zeros(none, np.int32), np.zeros(none, np.float32)


def native_step(step: StepInput) -> _native.Step:
    """Raises ``ValueError`` naming the array that is not as ``StepInput`` says."""
    return cast(_native.Step, _native_arrays(_native.Step, step, _STEP_DTYPES))


def native_choices(batch: ChoiceBatch) -> _native.Choices:
    """Raises ``ValueError`` naming the array that is not as ``ChoiceBatch`` says."""
    return cast(_native.Choices, _native_arrays(_native.Choices, batch, _CHOICE_DTYPES))


def _native_arrays(make: Callable[..., Any], record: object, dtypes: Sequence[tuple[str, Any, int]]) -> Any:
    """``record``'s arrays for native calls, which see later changes of their contents."""
    try:
        return make(*[getattr(record, name) for name, _, _ in dtypes])
    except TypeError as error:
        raise _explain(record, dtypes, error) from None


def _explain(record: object, dtypes: Sequence[tuple[str, Any, int]], error: TypeError) -> Exception:
    """Says which array the native call refused; it takes them as they are or not at all."""
    for name, dtype, ndim in dtypes:
        array = getattr(record, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim or not array.flags.c_contiguous:
            got = f"{array.dtype} with {array.ndim} dimensions" if isinstance(array, np.ndarray) else type(array).__name__
            return ValueError(f"{name} must be a C-contiguous {np.dtype(dtype).name} array with {ndim} dimensions, not {got}")
    return error
