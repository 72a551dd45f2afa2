"""Paged attention against a dense float64 softmax, with NaN in every slot that no query may see.

Bound: a score is a float32 sum of head_dim products; the weights inherit its absolute error; the weighted sum of n values
adds n roundings (the same textbook bound as for ``linear``); a weight below exp(-87) may count as none. Dropping or adding one
key of n is off by about 1/n.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend
from octavo.config import KVDType

from .programs import attention_program, compile_program
from .steps import Driver

UNIT = 2.0**-24
VOCAB = 61
KV_DTYPES: tuple[KVDType, ...] = get_args(KVDType)
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


def rounded(x: Float32Array, kv_dtype: KVDType) -> Float64Array:
    """What a cache keeps of finite heads x (…, head_dim), by the rule that ``native/kernels/attention.hpp`` states."""
    if kv_dtype == "fp16":
        return x.astype(np.float16).astype(np.float64)
    if kv_dtype == "fp32":
        return x.astype(np.float64)
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    return np.round(x / scale).astype(np.float64) * scale


def token_table(num_heads: int, num_kv_heads: int, head_dim: int, seed: int = 0) -> Float32Array:
    """q, k, v of each token: scores of deviation about 2, values with an offset so that a lost key shows."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(VOCAB, num_heads * head_dim)) * 1.5
    k = rng.normal(size=(VOCAB, num_kv_heads * head_dim)) * 1.5
    v = rng.normal(size=(VOCAB, num_kv_heads * head_dim)) + 0.5
    return np.concatenate([q, k, v], axis=1).astype(np.float32)


def check(got: Float32Array, ids: npt.ArrayLike, start: int, table: Float32Array, heads: tuple[int, int, int], kv_dtype: KVDType) -> None:
    """``got``: outputs of the sequence's tokens ``start`` and on."""
    num_heads, num_kv_heads, head_dim = heads
    ids = np.asarray(ids)
    q, k, v = np.split(table[ids], [num_heads * head_dim, (num_heads + num_kv_heads) * head_dim], axis=1)
    keys, values = (rounded(x.reshape(len(ids), num_kv_heads, head_dim), kv_dtype) for x in (k, v))
    queries = q[start:].astype(np.float64).reshape(-1, num_heads, head_dim)
    out = got.reshape(-1, num_heads, head_dim)
    assert not np.isnan(got).any()
    visible = np.arange(len(ids))[None, :] <= np.arange(start, len(ids))[:, None]
    for head in range(num_heads):
        kh, vh, qh = keys[:, head // (num_heads // num_kv_heads)], values[:, head // (num_heads // num_kv_heads)], queries[:, head]
        scores = np.where(visible, qh @ kh.T * head_dim**-0.5, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        score_error = (head_dim + 4) * UNIT * (np.abs(qh) @ np.abs(kh).T * head_dim**-0.5 * visible).max(axis=1, keepdims=True)
        vanished = len(ids) * np.exp(-87.0) * np.abs(vh).max()
        bound = (2 * score_error + (len(ids) + 32) * UNIT) * (weights @ np.abs(vh)) + vanished
        error = np.abs(out[:, head] - weights @ vh)
        assert (error <= bound).all(), f"head {head}: {np.max(error / bound):.3g} times the bound"


HEADS = [(1, 1, 64), (2, 2, 80), (4, 1, 128), (6, 2, 64), (5, 1, 32), (8, 1, 64), (8, 8, 32), (9, 3, 64), (7, 1, 80), (16, 2, 128)]


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=lambda h: "x".join(map(str, h)))
def test_ragged_step(backend: Backend, heads: tuple[int, int, int], kv_dtype: KVDType) -> None:
    """Prompts of odd lengths together, then every sequence goes on by another odd number of tokens, in another order."""
    table = token_table(*heads)
    driver = Driver(compile_program(backend, *attention_program(table, *heads), kv_dtype=kv_dtype))
    rng = np.random.default_rng(7)
    first, second = (1, 15, 16, 17, 33), (17, 1, 1, 16, 31)
    sequences = [driver.sequence(rng.integers(0, VOCAB, a + b)) for a, b in zip(first, second, strict=True)]
    logits = driver.run(list(zip(sequences, first, strict=True)))
    for sequence, part in zip(sequences, np.split(logits, np.cumsum(first)[:-1]), strict=True):
        check(part, sequence.tokens[: len(part)], 0, table, heads, kv_dtype)
    order = [3, 0, 4, 2, 1]
    logits = driver.run([(sequences[i], second[i]) for i in order])
    for i, part in zip(order, np.split(logits, np.cumsum([second[i] for i in order])[:-1]), strict=True):
        check(part, sequences[i].tokens, first[i], table, heads, kv_dtype)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("heads", [(6, 2, 64), (2, 1, 80)], ids=lambda h: "x".join(map(str, h)))
def test_every_context_length(backend: Backend, heads: tuple[int, int, int], kv_dtype: KVDType) -> None:
    """Contexts around the places where the kernels cut the keys: one query each, and a chunk that straddles them."""
    table = token_table(*heads)
    driver = Driver(compile_program(backend, *attention_program(table, *heads), kv_dtype=kv_dtype, max_tokens=1200), num_blocks=500)
    rng = np.random.default_rng(3)
    lengths = (1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025, 1100)
    sequences = [driver.sequence(rng.integers(0, VOCAB, n)) for n in lengths]
    for sequence in sequences:
        if len(sequence.tokens) > 1:
            driver.run([(sequence, len(sequence.tokens) - 1)], logits_rows=[])
    logits = driver.run([(sequence, 1) for sequence in sequences])
    for sequence, row in zip(sequences, logits, strict=True):
        check(row[None], sequence.tokens, len(sequence.tokens) - 1, table, heads, kv_dtype)


@pytest.mark.parametrize("start", [0, 40, 500, 1020])
def test_chunk_over_a_split(backend: Backend, start: int) -> None:
    heads = (6, 2, 64)
    table = token_table(*heads)
    driver = Driver(compile_program(backend, *attention_program(table, *heads), max_tokens=1200))
    sequence = driver.sequence(np.random.default_rng(start).integers(0, VOCAB, start + 50))
    if start:
        driver.run([(sequence, start)], logits_rows=[])
    check(driver.run([(sequence, 50)]), sequence.tokens, start, table, heads, "fp32")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_large_scores_do_not_overflow(backend: Backend, kv_dtype: KVDType) -> None:
    """Scores of several hundred: their exponentials exist only relative to the largest."""
    heads = (2, 1, 64)
    table = token_table(*heads)
    table[:, : 3 * 64] *= 12
    driver = Driver(compile_program(backend, *attention_program(table, *heads), kv_dtype=kv_dtype))
    ids = np.random.default_rng(0).integers(0, VOCAB, 150)
    check(driver.whole(ids), ids, 0, table, heads, kv_dtype)


def test_softmax_scale_is_the_program_s(backend: Backend) -> None:
    from octavo.program import ProgramBuilder

    from .tensors import float_tensor

    table = token_table(2, 1, 64)
    b = ProgramBuilder("scaled", 2048)
    q, k, v = b.split(b.embedding("table", *table.shape), [128, 64, 64])
    a = b.paged_attention(q, k, v, layer=0, num_heads=2, num_kv_heads=1, head_dim=64, scale=0.03)
    program = b.build(b.select_rows(a))
    scaled = table.copy()
    scaled[:, :128] *= np.float32(0.03 * 8)
    driver = Driver(compile_program(backend, program, {"table": float_tensor("table", table)}))
    ids = np.random.default_rng(0).integers(0, VOCAB, 40)
    check(driver.whole(ids), ids, 0, scaled, (2, 1, 64), "fp32")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_faulty_token_spoils_only_those_who_see_it(backend: Backend, kv_dtype: KVDType) -> None:
    """A token whose K and V are NaN: its sequence is NaN from there on, the rest of the batch is untouched."""
    heads = (6, 2, 64)
    table = token_table(*heads)
    table[60] = np.nan
    driver = Driver(compile_program(backend, *attention_program(table, *heads), kv_dtype=kv_dtype))
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, 60, 40) for _ in range(3)]
    alone = [driver.whole(i) for i in ids]
    ids[1][20] = 60
    sequences = [driver.sequence(i) for i in ids]
    together = np.split(driver.run([(s, 40) for s in sequences]), 3)
    assert np.array_equal(together[0], alone[0])
    assert np.array_equal(together[2], alone[2])
    assert np.array_equal(together[1][:20], alone[1][:20])
    assert np.isnan(together[1][20:]).all()
