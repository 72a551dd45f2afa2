"""What only the native executable has: threads, memory of its own, ISA families, profiles, an end."""

from __future__ import annotations

import threading
import time
from typing import get_args

import numpy as np
import pytest

from octavo import _native
from octavo.backends import get_backend
from octavo.backends.base import CompileOptions
from octavo.backends.native import NativeExecutable
from octavo.config import KVDType
from octavo.weights.tensor import TensorType

from ...conformance.choices import choice_batch
from ...conformance.programs import LittleLlama, attention_program, compile_program
from ...conformance.steps import Driver, make_step
from ...conformance.tensors import float_tensor

MODEL = LittleLlama(linear_types=(TensorType.Q4_1, TensorType.Q8_0, TensorType.F16), embedding_type=TensorType.Q8_0)


def executable(model: LittleLlama = MODEL, num_threads: int = 2, kv_dtype: KVDType = "fp16", max_tokens: int = 720) -> NativeExecutable:
    program, tensors = model.build()
    options = CompileOptions(16, kv_dtype, max_tokens, max_tokens, program.max_model_len, num_threads)
    exe = get_backend("native").compile(program, tensors, options)
    assert isinstance(exe, NativeExecutable)
    return exe


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_bits_do_not_depend_on_threads_or_on_how_work_is_cut(num_threads: int) -> None:
    """Decoding alone is cut into splits of 512 keys; a crowd is not. Seven threads are more than there are cores."""
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, 1200)
    alone, crowd = executable(num_threads=1), executable(num_threads=num_threads)
    a, b = Driver(alone, 100), Driver(crowd, 700)
    one = a.sequence(tokens)
    want = [a.run([(one, n)], [n - 1]) for n in (400, 700, 1, 1, 98)]
    many = [b.sequence(tokens) for _ in range(3)] + [b.sequence(tokens[i : i + 90]) for i in range(8)]
    got = [b.run([(s, n) for s in many[:3]], [n - 1, 2 * n - 1, 3 * n - 1]) for n in (200, 200)][-1]
    assert (got == want[0]).all()
    for n in (230, 230, 230, 10):
        got = b.run([(s, n) for s in many[:3]], [n - 1, 2 * n - 1, 3 * n - 1])
    assert (got == want[1]).all()
    b.run([(s, 80) for s in many[3:]])
    for i in (2, 3):
        got = b.run([(s, 1) for s in many], [0, 1, 2])
        assert (got == want[i]).all()
    got = b.run([(many[0], 98)], [97])
    assert (got == want[4]).all()
    alone.close()
    crowd.close()


def test_long_idle_threads_wake_up() -> None:
    exe = executable(num_threads=4)
    driver = Driver(exe)
    tokens = np.arange(60)
    want = driver.whole(tokens)
    for pause_s in (0.0, 0.0001, 0.01, 0.2):
        time.sleep(pause_s)
        assert (driver.whole(tokens) == want).all()


def test_many_executables_come_and_go() -> None:
    before = threading.active_count()
    for _ in range(20):
        exe = executable(num_threads=3)
        exe.allocate_kv(4)
        exe.close()
    assert threading.active_count() == before


def test_closing_ends_it_but_logits_stay_readable() -> None:
    exe = executable()
    driver = Driver(exe)
    sequence = driver.sequence(range(5))
    sequence.table = [0]
    logits = exe.run(make_step([(sequence, 5)], 16))
    kept = logits.copy()
    exe.close()
    exe.close()
    assert (logits == kept).all()
    with pytest.raises(RuntimeError, match="closed"):
        exe.run(make_step([(sequence, 5)], 16))


def test_two_threads_may_not_use_it_at_once() -> None:
    exe = executable(num_threads=1)
    driver = Driver(exe)
    sequence = driver.sequence(np.arange(600) % MODEL.vocab_size)
    sequence.table = list(range(40))
    step = make_step([(sequence, 600)], 16, [599])
    want = exe.run(step).copy()
    refusals: list[str] = []
    results: list[bool] = []

    def use() -> None:
        for _ in range(20):
            try:
                results.append(bool((exe.run(step) == want).all()))
            except RuntimeError as error:
                refusals.append(str(error))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results
    assert all(results)
    assert set(refusals) <= {"the executable is in use by another thread"}


def test_impossible_storage_is_a_memory_error_and_nothing_more() -> None:
    exe = executable()
    for num_blocks in (2**40, 2**62):
        with pytest.raises(MemoryError):
            exe.allocate_kv(num_blocks)
    assert np.isfinite(Driver(exe).whole(np.arange(20))).all()


def test_without_storage_a_step_is_refused() -> None:
    exe = executable()
    sequence = Driver(exe).sequence([1])
    sequence.table = [0]
    exe.allocate_kv(0)
    with pytest.raises(ValueError, match=r"block_tables\[0, 0\] = 0"):
        exe.run(make_step([(sequence, 1)], 16))


def test_no_steady_state_growth() -> None:
    exe = executable()
    driver = Driver(exe, 200)
    tokens = np.arange(64)
    driver.whole(tokens)
    before = _resident_pages()
    for _ in range(200):
        driver.whole(tokens)
    assert _resident_pages() - before < 256


def _resident_pages() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


def test_profile_names_what_took_the_time() -> None:
    exe = executable()
    driver = Driver(exe)
    driver.whole(np.arange(40))
    assert not any(exe.profile().values())
    exe.set_profiling(True)
    driver.whole(np.arange(40))
    seconds = exe.profile()
    assert {k for k, v in seconds.items() if v > 0} >= {"embedding", "rms_norm", "linear", "write_kv", "attention", "silu_mul"}
    exe.set_profiling(False)
    driver.whole(np.arange(40))
    assert not any(exe.profile().values())


def test_packed_weights_are_kept_once_and_small() -> None:
    tied = executable(LittleLlama(linear_types=(TensorType.Q4_1,), embedding_type=TensorType.Q8_0))
    untied = executable(LittleLlama(linear_types=(TensorType.Q4_1,), embedding_type=TensorType.Q8_0, tied=False))
    assert untied.weight_bytes - tied.weight_bytes == 96 // 16 * 128 // 32 * 320  # the head, in int4 panels
    expanded = get_backend("native").compile(*MODEL.build(), CompileOptions(16, "fp32", 8, 8, 64, 1, dequantize=True))
    assert expanded.weight_bytes >= 4 * sum(int(np.prod(shape)) for shape in MODEL.build()[0].weights.values())


def test_isa_families(monkeypatch: pytest.MonkeyPatch) -> None:
    families = _native.isa_families()
    assert "avx2" in families
    assert executable().isa == families[0]
    for family in families:
        monkeypatch.setenv("OCTAVO_ISA", family)
        assert executable().isa == family
    monkeypatch.setenv("OCTAVO_ISA", "mmx")
    with pytest.raises(RuntimeError, match="OCTAVO_ISA='mmx' is not available here"):
        executable()


@pytest.mark.parametrize("kv_dtype", get_args(KVDType))
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(9, 3, 64), (7, 7, 80), (5, 1, 72), (48, 1, 16), (50, 1, 8)])
def test_attention_has_the_same_bits_in_every_isa_family(
    monkeypatch: pytest.MonkeyPatch, kv_dtype: KVDType, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    rng = np.random.default_rng(5)
    table = rng.normal(0, 2, (64, (num_heads + 2 * num_kv_heads) * head_dim)).astype(np.float32)
    tokens = rng.integers(0, 64, 640)
    results = []
    for family in _native.isa_families():
        monkeypatch.setenv("OCTAVO_ISA", family)
        exe = compile_program(get_backend("native"), *attention_program(table, num_heads, num_kv_heads, head_dim), kv_dtype=kv_dtype)
        results.append(Driver(exe).whole(tokens, chunk=150))
    assert all((result == results[0]).all() for result in results)
    assert np.isfinite(results[0]).all()


def test_head_dims_that_kernels_lack_are_refused() -> None:
    for head_dim in (12, 2048):
        with pytest.raises(ValueError, match=f"head_dim={head_dim}"):
            executable(LittleLlama(num_heads=1, num_kv_heads=1, head_dim=head_dim))


def test_other_block_sizes_are_refused() -> None:
    program, tensors = MODEL.build()
    with pytest.raises(ValueError, match="block_size=32"):
        get_backend("native").compile(program, tensors, CompileOptions(32, "fp16", 8, 8, 64, 1))


def test_a_nan_weight_spoils_its_own_rows_only() -> None:
    program, tensors = LittleLlama().build()
    table = tensors["embed"].data.view(np.float32).copy()
    table[7, 3] = np.nan
    tensors["embed"] = float_tensor("embed", table)
    exe = get_backend("native").compile(program, tensors, CompileOptions(16, "fp16", 64, 64, 128, 2))
    driver = Driver(exe)
    good, bad = driver.sequence(range(8, 20)), driver.sequence([7, 1, 2])
    logits = np.delete(driver.run([(good, 12), (bad, 3)]), 7, axis=1)  # column 7 is the spoilt row of the tied head
    assert np.isfinite(logits[:12]).all()
    assert np.isnan(logits[12:]).all()


@pytest.mark.parametrize("vocab_size", [1, 7, 255, 257, 49152])
def test_choices_agree_with_the_reference(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    num = 300 if vocab_size < 1000 else 60
    logits = (rng.normal(0, 4, (num, vocab_size))).astype(np.float32)
    logits[::5] = np.round(logits[::5])  # ties
    logits[3, :] = -np.inf
    logits[4, 0] = np.nan
    batch = choice_batch(
        np.arange(num), temperature=rng.choice([0, 0.3, 1, 2], num), top_k=rng.choice([0, 1, 5, 40, 2000], num),
        top_p=rng.choice([1, 0.95, 0.5, 0.01], num), min_p=rng.choice([0, 0.05, 1], num), seed=rng.integers(0, 2**63, num),
        position=np.arange(num), num_logprobs=rng.integers(-1, min(20, vocab_size) + 1, num),
    )  # fmt: skip
    program, tensors = MODEL.build()
    options = CompileOptions(16, "fp32", 8, 8, 64, 3)
    got = get_backend("native").compile(program, tensors, options).choose(logits, batch)
    want = get_backend("reference").compile(program, tensors, options).choose(logits, batch)
    assert (got.token_ids == want.token_ids).all()
    assert (got.ranks == want.ranks).all()
    assert (got.top_ids == want.top_ids).all()
    np.testing.assert_allclose(got.logprobs, want.logprobs, rtol=1e-6)
    np.testing.assert_allclose(got.top_logprobs, want.top_logprobs, rtol=1e-6)
