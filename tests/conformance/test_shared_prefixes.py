"""Blocks that sequences of a step share are read once for all of them, to the bit as if each had walked its keys alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend
from octavo.backends.native.executable import NativeExecutable
from octavo.config import KVDType

from .programs import attention_program, compile_program
from .steps import Chunk, Driver, Sequence
from .test_attention import VOCAB, token_table

Ids = npt.NDArray[np.int64]


def compile_attention(backend: Backend, heads: tuple[int, int, int], kv_dtype: KVDType, num_threads: int) -> NativeExecutable:
    exe = compile_program(
        backend, *attention_program(token_table(*heads), *heads), kv_dtype=kv_dtype, max_tokens=600, max_logits_rows=600,
        num_threads=num_threads,
    )  # fmt: skip
    assert isinstance(exe, NativeExecutable)
    return exe


def compute(driver: Driver, sequence: Sequence, num_tokens: int) -> None:
    """Runs the sequence alone up to that token."""
    while (left := num_tokens - sequence.num_computed) > 0:
        driver.run([(sequence, min(left, 500))], logits_rows=[])


def random_tree(driver: Driver, rng: np.random.Generator, size: int) -> list[Sequence]:
    """Sequences that share prefixes of whole blocks with one another, to any depth; some own all of their blocks."""
    block = driver.exe.options.block_size
    sequences: list[Sequence] = []
    for _ in range(size):
        own = rng.integers(0, VOCAB, rng.choice([3, 70, 200, 600]) + rng.integers(0, 70))
        if sequences and rng.random() < 0.85:
            parent = sequences[rng.integers(len(sequences))]
            longest = parent.num_computed // block
            blocks = longest if rng.random() < 0.5 else int(rng.integers(0, longest + 1))
            sequence = driver.fork(parent, blocks * block, own.tolist())
        else:
            sequence = driver.sequence(own)
        chunk = 1 if rng.random() < 0.6 else int(rng.integers(1, min(len(own), 60) + 1))
        if len(sequence.tokens) - chunk > 1500:
            continue
        compute(driver, sequence, len(sequence.tokens) - chunk)
        sequences.append(sequence)
    return sequences


def run_both_ways(driver: Driver, exe: NativeExecutable, chunks: list[Chunk]) -> None:
    """The same step with and without sharing; leaves it uncomputed."""
    logits = []
    for enabled in (True, False):
        exe.set_prefix_sharing(enabled)
        logits.append(driver.run(chunks))
        for sequence, n in chunks:
            sequence.num_computed -= n
    exe.set_prefix_sharing(True)
    assert np.isfinite(logits[1]).all()
    assert np.array_equal(logits[0], logits[1])


@pytest.mark.parametrize(
    ("heads", "kv_dtype", "num_threads"),
    [((9, 3, 64), "fp16", 3), ((2, 2, 40), "fp32", 1), ((16, 1, 32), "int8", 2)],
    ids=["9x3x64", "2x2x40", "16x1x32"],
)
def test_random_trees(native: Backend, heads: tuple[int, int, int], kv_dtype: KVDType, num_threads: int) -> None:
    """Decoding rows and chunks of prompts in one step, in any order."""
    exe = compile_attention(native, heads, kv_dtype, num_threads)
    for seed in range(1 if exe.isa == "scalar" else 3):  # which is slow
        rng = np.random.default_rng(seed)
        driver = Driver(exe, num_blocks=1500, seed=seed)
        sequences = random_tree(driver, rng, 14)
        for _ in range(3):
            some = rng.permutation(len(sequences))[: rng.integers(2, len(sequences) + 1)]
            chunks = [(sequences[i], len(sequences[i].tokens) - sequences[i].num_computed) for i in some]
            run_both_ways(driver, exe, chunks)
    exe.close()


@pytest.mark.parametrize(("prefix", "num_samples"), [(256, 33), (496, 3), (512, 8), (1040, 20)])
def test_samples_of_one_prompt(native: Backend, prefix: int, num_samples: int) -> None:
    """Branches go on token by token, with 17 of their own: what each step gives is what the branch gives alone."""
    exe = compile_attention(native, (9, 3, 64), "fp16", 2)
    rng = np.random.default_rng(prefix)
    driver = Driver(exe, num_blocks=300)
    parent = driver.sequence(rng.integers(0, VOCAB, prefix))
    compute(driver, parent, prefix)
    branches = [driver.fork(parent, prefix, rng.integers(0, VOCAB, 17).tolist()) for _ in range(num_samples)]
    together = np.stack([driver.run([(branch, 1) for branch in branches]) for _ in range(17)], axis=1)
    for branch, rows in zip(branches, together, strict=True):
        branch.num_computed = prefix
        assert np.array_equal(driver.run([(branch, 17)]), rows)
    exe.close()
