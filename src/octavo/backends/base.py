"""What a backend offers: compile a program once, then run steps.

A backend owns everything made of bytes: weights in its own layout, the KV storage, scratch memory. The engine
above it deals in ids and counts. ``reference`` (NumPy) is slow and obviously right; ``native`` (C++) is what
people use; ``tests/conformance`` runs one suite on both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.config import KVDType
from octavo.program import KVSpec, Program
from octavo.weights.tensor import Tensor

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
UInt32Array = npt.NDArray[np.uint32]
UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


_ELEMENT_BYTES: dict[KVDType, int] = {"fp32": 4, "fp16": 2, "int8": 1}


def kv_bytes_per_token(spec: KVSpec, dtype: KVDType) -> int:
    """Bytes of a token's K and V in all layers and KV heads, with the two fp32 scales that each head has of them in int8."""
    scales = 8 * spec.num_layers * spec.num_kv_heads if dtype == "int8" else 0
    return spec.elements_per_token * _ELEMENT_BYTES[dtype] + scales


def _no_ids() -> Int32Array:
    return np.zeros(0, np.int32)


def _no_floats() -> Float32Array:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step over S sequences as flat ragged arrays, C-contiguous. T scheduled tokens, L logits rows.

    Sequence s owns rows ``query_start_loc[s] … query_start_loc[s+1]`` of the token arrays; they are its last
    tokens, at consecutive positions that end at ``seq_lens[s] - 1``. Logical block b of sequence s is
    physical block ``block_tables[s, b]``; entries past ``ceil(seq_lens[s] / block_size)`` are not read.
    """

    token_ids: Int32Array  # (T,)
    positions: Int32Array  # (T,)
    query_start_loc: Int32Array  # (S + 1,)
    seq_lens: Int32Array  # (S,) tokens that the sequence's last row sees, itself included
    block_tables: Int32Array  # (S, max blocks)
    slot_mapping: Int64Array  # (T,) block_tables[s, p // block_size] * block_size + p % block_size
    logits_rows: Int32Array  # (L,) rows of the token arrays, ascending


@dataclass(frozen=True, slots=True)
class ChoiceBatch:
    """R token choices. Choice r draws from logits row ``rows[r]``; several may draw from one row (n > 1).

    The rule, in this order, in fp32 up to the temperature:

    1. *Allowed*: if ``allowed_choices`` names choice r, the logits of all tokens but those are -inf.
    2. *Edits*: ``edit_values[i]`` is added to logit ``edit_tokens[i]`` of choice ``edit_choices[i]`` (-inf bans it), in order.
    3. *Penalties*, for each (token, count) of ``count_choices, count_tokens, counts``, where a count of 0 is a token of the prompt
       alone: x ← x / repetition_penalty if x > 0, else x · repetition_penalty; if count > 0, x ← x - frequency_penalty · count, then
       x ← x - presence_penalty. A choice names a token once.
    4. *Greedy* (temperature 0): the largest logit, the lowest id among equals.
    5. Otherwise logits are divided by the temperature, then tokens are kept if: probability ≥ min_p · the largest (0 keeps all);
       logit ≥ the top_k-th largest (0 keeps all); they belong to the smallest set of most probable tokens, ties by lower id,
       whose probability (renormalised after top_k) reaches top_p (1 keeps all); they belong to the smallest set of most typical tokens,
       ties by lower id, whose probability (renormalised after top_p) reaches typical_p (1 keeps all): those whose information
       -ln p is nearest to the entropy of the kept tokens (Meister et al. 2023, Locally Typical Sampling).
    6. The draw inverts the kept tokens' cumulative weights in id order at u · total, where u ∈ [0, 1) comes from
       Philox4x32-10 with key = (seed's low, high 32 bits) and counter = (position, branch, 0, 0):
       u = ((x₀ · 2³² + x₁) >> 11) · 2⁻⁵³.

    The ``*_choices`` arrays are sorted. Log-probabilities are log-softmax of the logits as the model gave them, row
    ``report_rows[r]`` (``rows[r]`` where that is empty): before anything above. ``num_logprobs[r]``: -1 none; k ≥ 0 the chosen
    token's, its rank and the k most probable tokens.
    """

    rows: Int32Array  # (R,)
    temperature: Float32Array  # (R,)
    top_k: Int32Array  # (R,)
    top_p: Float32Array  # (R,)
    min_p: Float32Array  # (R,)
    seed: UInt64Array  # (R,)
    branch: UInt32Array  # (R,)
    position: UInt32Array  # (R,) position of the token being chosen
    num_logprobs: Int32Array  # (R,)
    typical_p: Float32Array = field(default_factory=_no_floats)  # (R,), or empty: 1
    repetition_penalty: Float32Array = field(default_factory=_no_floats)  # (R,), or empty: 1
    frequency_penalty: Float32Array = field(default_factory=_no_floats)  # (R,), or empty: 0
    presence_penalty: Float32Array = field(default_factory=_no_floats)  # (R,), or empty: 0
    report_rows: Int32Array = field(default_factory=_no_ids)  # (R,), or empty: rows
    edit_choices: Int32Array = field(default_factory=_no_ids)  # (E,)
    edit_tokens: Int32Array = field(default_factory=_no_ids)  # (E,)
    edit_values: Float32Array = field(default_factory=_no_floats)  # (E,)
    count_choices: Int32Array = field(default_factory=_no_ids)  # (C,)
    count_tokens: Int32Array = field(default_factory=_no_ids)  # (C,)
    counts: Int32Array = field(default_factory=_no_ids)  # (C,)
    allowed_choices: Int32Array = field(default_factory=_no_ids)  # (A,)
    allowed_tokens: Int32Array = field(default_factory=_no_ids)  # (A,)

    @classmethod
    def greedy(cls, rows: Int32Array, num_logprobs: Int32Array, **more: Any) -> ChoiceBatch:
        """The most probable token of each of ``rows`` (R,): for its log-probabilities, as nothing is drawn. ``more``: other fields."""
        zeros = np.zeros(len(rows), np.float32)
        ids = np.zeros(len(rows), np.uint32)
        return cls(
            rows=rows,
            temperature=zeros,
            top_k=np.zeros(len(rows), np.int32),
            top_p=zeros + np.float32(1),
            min_p=zeros,
            seed=np.zeros(len(rows), np.uint64),
            branch=ids,
            position=ids,
            num_logprobs=num_logprobs,
            **more,
        )


@dataclass(frozen=True, slots=True)
class Choices:
    """``token_ids[r]`` is -1 where row r had a NaN or +inf, or nothing that could be chosen: an error of that row alone."""

    token_ids: Int32Array  # (R,)
    logprobs: Float32Array  # (R,) of the chosen token; NaN where not asked for
    ranks: Int32Array  # (R,) 1 for the most probable token; 0 where not asked for
    top_ids: Int32Array  # (R, max num_logprobs), -1 where not asked for; most probable first, ties by lower id
    top_logprobs: Float32Array  # (R, max num_logprobs)


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """``max_tokens``/``max_logits_rows``: the largest T and L that ``run`` will ever get (scratch is sized by them)."""

    block_size: int
    kv_dtype: KVDType
    max_tokens: int
    max_logits_rows: int
    max_model_len: int
    num_threads: int
    dequantize: bool = False


class Executable(ABC):
    """A compiled program with its weights. One thread at a time may call it; ``run`` holds no Python lock for long."""

    program: Program
    options: CompileOptions

    @property
    @abstractmethod
    def kv_block_bytes(self) -> int:
        """Bytes of one KV block: K and V of ``block_size`` tokens for all layers and KV heads, and their scales if any."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the weights as packed in memory."""

    @property
    @abstractmethod
    def isa(self) -> str:
        """The instruction set family in use (``numpy``, ``avx2``, …): a part of law 1's scope."""

    @abstractmethod
    def allocate_kv(self, num_blocks: int, *, fill_nan: bool = False) -> None:
        """Storage of ``num_blocks`` blocks; replaces any earlier storage. ``fill_nan`` poisons it (tests): in int8, its scales.

        Raises ``MemoryError`` if the storage cannot be had.
        """

    @abstractmethod
    def run(self, step: StepInput) -> Float32Array:
        """Logits (L, vocab_size), valid until the next call. KV writes are idempotent: a failed step can be rerun.

        The contents of ``step``'s arrays may change between calls; a backend that knows it already need not look at it anew.

        Raises ``ValueError`` when an id or a position lies outside what was compiled or allocated.
        """

    @abstractmethod
    def choose(self, logits: Float32Array, batch: ChoiceBatch) -> Choices:
        """Picks tokens from logits that ``run`` returned, by the rule of ``ChoiceBatch``; its arrays, too, may change between calls."""

    @abstractmethod
    def copy_blocks(self, pairs: Int32Array) -> None:
        """Copies whole blocks: pairs (n, 2) of (source, destination) physical ids, in order."""

    @abstractmethod
    def read_block(self, block: int) -> UInt8Array:
        """The bytes of one block (kv_block_bytes,), copied (swapping, tests)."""

    @abstractmethod
    def write_block(self, block: int, data: UInt8Array) -> None:
        """Overwrites one block with bytes that ``read_block`` gave."""

    def set_profiling(self, enabled: bool) -> None:  # noqa: B027 - optional hook
        """Starts or stops timing what the kernels do; forgets what was measured before."""

    def profile(self) -> dict[str, float]:
        """Seconds per kind of work since ``set_profiling(True)``; empty where nothing is timed."""
        return {}

    def close(self) -> None:  # noqa: B027 - optional hook
        """Frees threads and memory; the executable must not be used afterwards."""


class Backend(ABC):
    name: str

    @abstractmethod
    def compile(self, program: Program, tensors: Mapping[str, Tensor], options: CompileOptions) -> Executable:
        """Packs the weights that ``program`` reads and prepares its steps.

        Raises ``ValueError`` naming the tensor that is missing or misshapen.
        """
