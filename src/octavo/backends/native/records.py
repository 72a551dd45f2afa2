"""``StepInput`` and ``ChoiceBatch`` as native calls take them: bound once, and seen with whatever their arrays hold at each call.

Handing over two dozen arrays costs a small step more than what is done with them. So the executable keeps what it was given last, and
binds anew only what is another record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np

from octavo import _native
from octavo.backends.arrays import CHOICE_ARRAYS, ENTRY_ARRAYS, OPTIONAL_CHOICE_ARRAYS, STEP_ARRAYS, check_array
from octavo.backends.base import ChoiceBatch, Float32Array, Int32Array, StepInput

_CHOICE_ARRAYS = tuple((name, dtype, 1) for name, dtype in (*CHOICE_ARRAYS, *OPTIONAL_CHOICE_ARRAYS, *chain(*ENTRY_ARRAYS)))
"""In the order of ``_native.Choices``."""


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
    return cast(_native.Step, _native_arrays(_native.Step, step, STEP_ARRAYS))


def native_choices(batch: ChoiceBatch) -> _native.Choices:
    """Raises ``ValueError`` naming the array that is not as ``ChoiceBatch`` says."""
    return cast(_native.Choices, _native_arrays(_native.Choices, batch, _CHOICE_ARRAYS))


def _native_arrays(make: Callable[..., Any], record: object, arrays: Sequence[tuple[str, Any, int]]) -> Any:
    """``record``'s arrays for native calls, which see later changes of their contents."""
    try:
        return make(*[getattr(record, name) for name, _, _ in arrays])
    except TypeError:
        for name, dtype, ndim in arrays:  # one of them is why
            check_array(name, getattr(record, name), dtype, ndim)
        raise
