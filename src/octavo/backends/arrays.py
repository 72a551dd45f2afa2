"""What the arrays of ``StepInput`` and ``ChoiceBatch`` are: names, dtypes and dimensions. They are taken as they are or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np

STEP_ARRAYS = (
    ("token_ids", np.int32, 1),
    ("positions", np.int32, 1),
    ("query_start_loc", np.int32, 1),
    ("seq_lens", np.int32, 1),
    ("block_tables", np.int32, 2),
    ("slot_mapping", np.int64, 1),
    ("logits_rows", np.int32, 1),
)
"""(name, dtype, number of dimensions)."""

CHOICE_ARRAYS = (
    ("rows", np.int32),
    ("temperature", np.float32),
    ("top_k", np.int32),
    ("top_p", np.float32),
    ("min_p", np.float32),
    ("seed", np.uint64),
    ("branch", np.uint32),
    ("position", np.uint32),
    ("num_logprobs", np.int32),
)
"""(name, dtype), with one entry for each choice. All arrays of a batch have one dimension."""

OPTIONAL_CHOICE_ARRAYS = (
    ("typical_p", np.float32),
    ("repetition_penalty", np.float32),
    ("frequency_penalty", np.float32),
    ("presence_penalty", np.float32),
    ("report_rows", np.int32),
)
"""The same, or empty."""

ENTRY_ARRAYS = (
    (("edit_choices", np.int32), ("edit_tokens", np.int32), ("edit_values", np.float32)),
    (("count_choices", np.int32), ("count_tokens", np.int32), ("counts", np.int32)),
    (("allowed_choices", np.int32), ("allowed_tokens", np.int32)),
)
"""Groups of as many entries, each of the choice that its first array says."""


def check_array(name: str, array: Any, dtype: Any, ndim: int) -> None:
    """Raises ``ValueError`` naming the array that is another one than it should be."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim or not array.flags.c_contiguous:
        got = f"{array.dtype} with {array.ndim} dimensions" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a C-contiguous {np.dtype(dtype).name} array with {ndim} dimensions, not {got}")
