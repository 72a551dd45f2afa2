"""``Driver``: sequences with block tables over an executable, and step arrays laid out as hostile as the contract allows.

Physical blocks are dealt in random order from a pool that is all NaN, unread block table entries hold garbage,
and a step's sequences may come in any order and in chunks of any size.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from octavo.backends.base import Executable, Float32Array, StepInput

GARBAGE = np.array([-1, 2**31 - 1, -(2**31), 10**6], np.int32)
"""What unread block table entries hold."""


@dataclass
class Sequence:
    """Token ids known so far, the blocks that hold their K and V, and how many are computed."""

    tokens: list[int]
    table: list[int] = field(default_factory=list)
    num_computed: int = 0


Chunk = tuple[Sequence, int]
"""A sequence and how many of its next tokens are scheduled."""


def make_step(chunks: SequenceOf[Chunk], block_size: int, logits_rows: npt.ArrayLike | None = None, spare_columns: int = 2) -> StepInput:
    """Arrays of one step; every row's logits are wanted unless ``logits_rows`` says otherwise."""
    lens = [s.num_computed + n for s, n in chunks]
    positions = np.concatenate([np.arange(s.num_computed, s.num_computed + n) for s, n in chunks])
    width = max(-(-n // block_size) for n in lens) + spare_columns
    tables = np.resize(GARBAGE, (len(chunks), width))
    for row, (sequence, _), length in zip(tables, chunks, lens, strict=True):
        used = -(-length // block_size)
        row[:used] = sequence.table[:used]
    owner = np.repeat(np.arange(len(chunks)), [n for _, n in chunks])
    slots = tables[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size
    return StepInput(
        token_ids=np.array([t for s, n in chunks for t in s.tokens[s.num_computed : s.num_computed + n]], np.int32),
        positions=positions.astype(np.int32),
        query_start_loc=np.cumsum([0] + [n for _, n in chunks], dtype=np.int32),
        seq_lens=np.array(lens, np.int32),
        block_tables=np.ascontiguousarray(tables),
        slot_mapping=slots,
        logits_rows=np.arange(len(positions), dtype=np.int32) if logits_rows is None else np.asarray(logits_rows, np.int32),
    )


class Driver:
    def __init__(self, exe: Executable, num_blocks: int = 128, seed: int = 0) -> None:
        exe.allocate_kv(num_blocks, fill_nan=True)
        self.exe = exe
        self.free = np.random.default_rng(seed).permutation(num_blocks).tolist()

    def sequence(self, tokens: SequenceOf[int] | npt.NDArray[np.integer]) -> Sequence:
        return Sequence([int(t) for t in tokens])

    def fork(self, parent: Sequence, num_tokens: int, tokens: SequenceOf[int]) -> Sequence:
        """A sequence that shares the blocks of its parent's first ``num_tokens`` (whole blocks) and goes on with ``tokens``."""
        size = self.exe.options.block_size
        assert num_tokens % size == 0
        assert num_tokens <= parent.num_computed
        return Sequence(parent.tokens[:num_tokens] + list(tokens), parent.table[: num_tokens // size], num_tokens)

    def run(self, chunks: SequenceOf[Chunk], logits_rows: npt.ArrayLike | None = None) -> Float32Array:
        """Schedules the chunks as one step; logits (rows, vocab), copied."""
        size = self.exe.options.block_size
        for sequence, n in chunks:
            while len(sequence.table) * size < sequence.num_computed + n:
                sequence.table.append(self.free.pop())
        logits = self.exe.run(make_step(chunks, size, logits_rows)).copy()
        for sequence, n in chunks:
            sequence.num_computed += n
        return logits

    def whole(self, tokens: SequenceOf[int] | npt.NDArray[np.integer], chunk: int | None = None) -> Float32Array:
        """Logits of every position of one new sequence alone, in chunks of at most ``chunk`` tokens."""
        sequence = self.sequence(tokens)
        chunk = chunk or self.exe.options.max_tokens
        parts = []
        while sequence.num_computed < len(sequence.tokens):
            parts.append(self.run([(sequence, min(chunk, len(sequence.tokens) - sequence.num_computed))]))
        self.release(sequence)
        return np.concatenate(parts)

    def release(self, sequence: Sequence) -> None:
        """Gives the blocks back, last one first in line, without cleaning them."""
        self.free.extend(sequence.table)
        sequence.table = []
