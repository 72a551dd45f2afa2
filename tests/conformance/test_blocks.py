"""Blocks as the engine moves them: sizes, layout, copies, reads and writes, and that storage holds what was written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend, Executable, UInt8Array
from octavo.config import KVDType

from .programs import BLOCK_SIZE, LittleLlama, attention_program, compile_program
from .steps import Driver, Sequence
from .test_attention import KV_DTYPES, rounded, token_table

STORED: dict[KVDType, type[np.float32] | type[np.float16] | type[np.int8]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
MODEL = LittleLlama(num_layers=3, num_heads=6, num_kv_heads=2, head_dim=64)


def compiled(backend: Backend, kv_dtype: KVDType) -> Executable:
    return compile_program(backend, *MODEL.build(), kv_dtype=kv_dtype)


def ids(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, MODEL.vocab_size, n)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_size_of_a_block(backend: Backend, kv_dtype: KVDType) -> None:
    exe = compiled(backend, kv_dtype)
    head_bytes = {"fp32": 64 * 4, "fp16": 64 * 2, "int8": 64 + 4}[kv_dtype]
    assert exe.kv_block_bytes == 2 * 3 * 2 * head_bytes * BLOCK_SIZE
    exe.allocate_kv(4)
    data = exe.read_block(0)
    assert data.dtype == np.uint8
    assert data.shape == (exe.kv_block_bytes,)


@dataclass
class Share:
    """One layer's and head's part of a block, its elements as float64 before scaling."""

    keys: npt.NDArray[np.float64]  # (head_dim, BLOCK_SIZE)
    values: npt.NDArray[np.float64]  # (BLOCK_SIZE, head_dim)
    k_scale: npt.NDArray[np.float32]  # (BLOCK_SIZE,)
    v_scale: npt.NDArray[np.float32]


def shares(data: UInt8Array, kv_dtype: KVDType, num_shares: int, head_dim: int) -> list[Share]:
    """[layer][kv_head]{K [head_dim][token], V [token][head_dim], and in int8 fp32 scales of K [token] and of V [token]}."""
    found = []
    for part in data.reshape(num_shares, -1):
        scales = np.ones(2 * BLOCK_SIZE, np.float32)
        if kv_dtype == "int8":
            part, scales = np.split(part, [2 * head_dim * BLOCK_SIZE])
            scales = scales.view(np.float32)
        k, v = np.split(part.view(STORED[kv_dtype]).astype(np.float64), 2)
        found.append(Share(k.reshape(head_dim, BLOCK_SIZE), v.reshape(BLOCK_SIZE, head_dim), *np.split(scales, 2)))
    return found


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_layout_of_a_block(backend: Backend, kv_dtype: KVDType) -> None:
    """Rounded to the cache's dtype, NaN where nothing was written: in int8 the scales are."""
    heads = (6, 2, 80)
    table = token_table(*heads)
    driver = Driver(compile_program(backend, *attention_program(table, *heads), kv_dtype=kv_dtype), num_blocks=8)
    sequence = driver.sequence(np.random.default_rng(0).integers(0, len(table), 27))
    driver.run([(sequence, 27)])
    k, v = np.split(table[sequence.tokens, 6 * 80 :], 2, axis=1)
    for b, block in enumerate(sequence.table):
        stored = shares(driver.exe.read_block(block), kv_dtype, 2, 80)
        used = min(BLOCK_SIZE, 27 - BLOCK_SIZE * b)
        rows = slice(BLOCK_SIZE * b, BLOCK_SIZE * b + used)
        for head in range(2):
            columns = slice(80 * head, 80 * head + 80)
            keys, values = stored[head].keys * stored[head].k_scale, stored[head].values * stored[head].v_scale[:, None]
            assert np.array_equal(keys[:, :used].T, rounded(k[rows, columns], kv_dtype))
            assert np.array_equal(values[:used], rounded(v[rows, columns], kv_dtype))
            assert np.isnan(keys[:, used:]).all()
            assert np.isnan(values[used:]).all()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_fill_nan_and_plain_storage(backend: Backend, kv_dtype: KVDType) -> None:
    exe = compiled(backend, kv_dtype)
    exe.allocate_kv(5, fill_nan=True)
    for share in shares(exe.read_block(4), kv_dtype, 3 * 2, 64):
        assert np.isnan(share.keys * share.k_scale).all()
        assert np.isnan(share.values * share.v_scale[:, None]).all()
    exe.allocate_kv(9)
    exe.read_block(8)


def test_fp16_rounds_to_nearest_even_and_overflows_to_infinity(backend: Backend) -> None:
    heads = (1, 1, 32)
    table = np.zeros((4, 96), np.float32)
    table[0, 64:] = [65519.0, 65520.0, -70000.0, 1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 1.5 * 2**-24, 1e-9] * 4
    driver = Driver(compile_program(backend, *attention_program(table, *heads), kv_dtype="fp16"), num_blocks=2)
    sequence = driver.sequence([0])
    driver.run([(sequence, 1)])
    stored = driver.exe.read_block(sequence.table[0]).view(np.float16).reshape(2, -1)[1, :32]
    with np.errstate(over="ignore"):
        assert np.array_equal(stored, table[0, 64:].astype(np.float16))


def test_int8_rounds_to_nearest_even_by_the_head_s_largest(backend: Backend) -> None:
    """Ties, the largest of either sign, heads that vanish or are not finite; each head and token has a scale of its own."""
    heads = (2, 2, 32)
    table = np.zeros((6, 192), np.float32)
    k, v = table[:, 64:128].reshape(6, 2, 32), table[:, 128:].reshape(6, 2, 32)
    ties = np.arange(32, dtype=np.float32) - 15.5
    v[0, 0] = [*ties[:-1], 127]
    v[0, 1] = [-254, *(2 * ties[1:])]
    k[1, 0], v[1, 0] = 2.0**-130, -(2.0**-120)  # too small; just large enough
    k[2, 0, 5], v[2, 1, 31] = np.inf, np.nan
    k[3], v[3] = 3e38, np.linspace(-1, 1, 32, dtype=np.float32) * np.float32(3.4e38)
    v[4, 0, 7] = 1e-30
    driver = Driver(compile_program(backend, *attention_program(table, *heads), kv_dtype="int8"), num_blocks=2)
    sequence = driver.sequence(range(6))
    driver.run([(sequence, 6)])
    for head, share in enumerate(shares(driver.exe.read_block(sequence.table[0]), "int8", 2, 32)):
        for token in range(6):
            for x, q, scale in ((k, share.keys[:, token], share.k_scale[token]), (v, share.values[token], share.v_scale[token])):
                most = np.abs(x[token, head]).max()
                if not np.isfinite(most):
                    assert np.isnan(scale)
                    assert not q.any()
                elif most < 127 * 2.0**-126:
                    assert scale == 0
                    assert not q.any()
                else:
                    assert scale == most / np.float32(127)
                    assert np.array_equal(q, np.round(x[token, head] / scale))
    rounded_ties = shares(driver.exe.read_block(sequence.table[0]), "int8", 2, 32)
    assert rounded_ties[0].values[0, :4].tolist() == [-16, -14, -14, -12]
    assert rounded_ties[1].values[0, :4].tolist() == [-127, -14, -14, -12]


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_copies_in_order(backend: Backend, kv_dtype: KVDType) -> None:
    """A later pair sees what an earlier one has written; a block may be its own copy."""
    exe = compiled(backend, kv_dtype)
    exe.allocate_kv(6)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, exe.kv_block_bytes), dtype=np.uint8)
    for i, data in enumerate(blocks):
        exe.write_block(i, data)
    pairs = [(0, 1), (1, 2), (3, 0), (4, 4), (2, 5)]
    exe.copy_blocks(np.array(pairs, np.int32))
    for source, destination in pairs:
        blocks[destination] = blocks[source]
    for i, data in enumerate(blocks):
        assert np.array_equal(exe.read_block(i), data)
    exe.copy_blocks(np.zeros((0, 2), np.int32))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_what_is_read_is_a_copy(backend: Backend, kv_dtype: KVDType) -> None:
    exe = compiled(backend, kv_dtype)
    exe.allocate_kv(2)
    data = np.arange(exe.kv_block_bytes).astype(np.uint8)
    exe.write_block(1, data)
    read = exe.read_block(1)
    read[:] = 0
    assert np.array_equal(exe.read_block(1), data)
    data[:] = 7
    assert not np.array_equal(exe.read_block(1), data)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_copied_prefix_gives_the_same_bits(backend: Backend, kv_dtype: KVDType) -> None:
    """Copy on write, swapping out and in, and a restart: the continuation reads copies of the blocks elsewhere."""
    exe = compiled(backend, kv_dtype)
    driver = Driver(exe, num_blocks=32)
    tokens = ids(75)
    want = driver.whole(tokens)
    first = driver.sequence(tokens)
    driver.run([(first, 41)])

    copied = Sequence(first.tokens, [driver.free.pop() for _ in first.table], 41)
    exe.copy_blocks(np.array(list(zip(first.table, copied.table, strict=True)), np.int32))
    saved = [exe.read_block(block) for block in first.table]
    assert np.array_equal(driver.run([(copied, 34)]), want[41:])

    exe.allocate_kv(32, fill_nan=True)
    restored = Sequence(first.tokens, [30, 2, 17], 41)
    for block, data in zip(restored.table, saved, strict=True):
        exe.write_block(block, data)
    driver.free = [b for b in range(32) if b not in restored.table]
    assert np.array_equal(driver.run([(restored, 34)]), want[41:])


def test_reallocation_replaces_the_storage(backend: Backend) -> None:
    exe = compiled(backend, "fp16")
    driver = Driver(exe, num_blocks=8)
    want = driver.whole(ids(40))
    for num_blocks in (3, 64):
        assert np.array_equal(Driver(exe, num_blocks=num_blocks).whole(ids(40)), want)


def test_storage_that_cannot_be_had(backend: Backend) -> None:
    with pytest.raises(MemoryError):
        compiled(backend, "fp32").allocate_kv(2**40)
