"""Blocks as the engine moves them: sizes, layout, copies, reads and writes, and that storage holds what was written."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend, Executable
from octavo.config import KVDType

from .programs import BLOCK_SIZE, LittleLlama, attention_program, compile_program
from .steps import Driver, Sequence
from .test_attention import DTYPES, token_table

MODEL = LittleLlama(num_layers=3, num_heads=6, num_kv_heads=2, head_dim=64)


def compiled(backend: Backend, kv_dtype: KVDType) -> Executable:
    return compile_program(backend, *MODEL.build(), kv_dtype=kv_dtype)


def ids(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, MODEL.vocab_size, n)


@pytest.mark.parametrize("kv_dtype", DTYPES)
def test_size_of_a_block(backend: Backend, kv_dtype: KVDType) -> None:
    exe = compiled(backend, kv_dtype)
    assert exe.kv_block_bytes == 2 * 3 * 2 * 64 * BLOCK_SIZE * np.dtype(DTYPES[kv_dtype]).itemsize
    exe.allocate_kv(4)
    data = exe.read_block(0)
    assert data.dtype == np.uint8
    assert data.shape == (exe.kv_block_bytes,)


@pytest.mark.parametrize("kv_dtype", DTYPES)
def test_layout_of_a_block(backend: Backend, kv_dtype: KVDType) -> None:
    """[layer][kv_head]{K [head_dim][token], V [token][head_dim]}, rounded to the cache's dtype, NaN where nothing was written."""
    heads = (6, 2, 80)
    table = token_table(*heads)
    driver = Driver(compile_program(backend, *attention_program(table, *heads), kv_dtype=kv_dtype), num_blocks=8)
    sequence = driver.sequence(np.random.default_rng(0).integers(0, len(table), 27))
    driver.run([(sequence, 27)])
    k, v = np.split(table[sequence.tokens, 6 * 80 :], 2, axis=1)
    for b, block in enumerate(sequence.table):
        stored = driver.exe.read_block(block).view(DTYPES[kv_dtype]).reshape(2, 2, 80 * BLOCK_SIZE)
        used = min(BLOCK_SIZE, 27 - BLOCK_SIZE * b)
        rows = slice(BLOCK_SIZE * b, BLOCK_SIZE * b + used)
        for head in range(2):
            columns = slice(80 * head, 80 * head + 80)
            keys, values = stored[head, 0].reshape(80, BLOCK_SIZE), stored[head, 1].reshape(BLOCK_SIZE, 80)
            assert np.array_equal(keys[:, :used].T, k[rows, columns].astype(DTYPES[kv_dtype]))
            assert np.array_equal(values[:used], v[rows, columns].astype(DTYPES[kv_dtype]))
            assert np.isnan(keys[:, used:]).all()
            assert np.isnan(values[used:]).all()


@pytest.mark.parametrize("kv_dtype", DTYPES)
def test_fill_nan_and_plain_storage(backend: Backend, kv_dtype: KVDType) -> None:
    exe = compiled(backend, kv_dtype)
    exe.allocate_kv(5, fill_nan=True)
    assert np.isnan(exe.read_block(4).view(DTYPES[kv_dtype])).all()
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


@pytest.mark.parametrize("kv_dtype", DTYPES)
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


@pytest.mark.parametrize("kv_dtype", DTYPES)
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


@pytest.mark.parametrize("kv_dtype", DTYPES)
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
