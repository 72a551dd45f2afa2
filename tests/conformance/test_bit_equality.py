"""Law 1: a sequence's logits are the same bits alone or in a crowd, whole or in chunks, wherever its blocks lie, on any
number of threads, and whether its prefix is its own or shared. Each backend is compared with itself, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.backends.base import Backend, Executable
from octavo.config import KVDType
from octavo.program import RopeStyle
from octavo.weights.tensor import TensorType

from .programs import LittleLlama, attention_program, compile_program
from .steps import Driver
from .tensors import ALL_TYPES, EVERY_TYPE, INTEGER_TYPES, float_tensor, values_of
from .test_attention import token_table

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    name: str
    model: LittleLlama
    kv_dtype: KVDType


def _one_type(type: TensorType) -> Case:
    model = LittleLlama.of_type(type, num_heads=6, num_kv_heads=2, hidden=96, head_dim=32)
    return Case(type.name, model, "fp16" if type.value[0] > 1 else "fp32")


CASES = [
    *(_one_type(type) for type in EVERY_TYPE),
    Case("mixed-80", LittleLlama(linear_types=ALL_TYPES[::-1], biases=True, head_dim=80, num_heads=4, num_kv_heads=1,
                                 rotary_dim=40, style=RopeStyle.HALF_SPLIT, tied=False), "fp16"),
    Case("mixed-128", LittleLlama(linear_types=(TensorType.Q4_1, TensorType.Q8_0), head_dim=128, num_heads=2, num_kv_heads=2,
                                  embedding_type=TensorType.Q8_0, vocab_size=77), "fp32"),
    Case("gqa-8", LittleLlama(linear_types=(TensorType.Q4_0, TensorType.F16), head_dim=64, num_heads=8, num_kv_heads=1), "fp16"),
    Case("int8-cache", LittleLlama(linear_types=(TensorType.Q4_1, TensorType.F32), head_dim=64, num_heads=6, num_kv_heads=2), "int8"),
]  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def exe(backend: Backend, case: Case) -> Executable:
    return compile_program(backend, *case.model.build(), kv_dtype=case.kv_dtype)


def prompts(case: Case, lengths: tuple[int, ...], seed: int = 0) -> list[Ids]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, case.model.vocab_size, n) for n in lengths]


def test_alone_or_in_a_crowd(exe: Executable, case: Case) -> None:
    batch = prompts(case, (1, 15, 16, 17, 33, 2, 64, 5))
    driver = Driver(exe)
    alone = [driver.whole(p) for p in batch]
    assert all(np.isfinite(logits).all() for logits in alone)
    sequences = [driver.sequence(p) for p in batch]
    together = driver.run([(s, len(s.tokens)) for s in sequences])
    for part, want in zip(np.split(together, np.cumsum([len(p) for p in batch])[:-1]), alone, strict=True):
        assert np.array_equal(part, want)


@pytest.mark.parametrize("chunk", [1, 3, 15, 16, 17, 32])
def test_whole_or_in_chunks(exe: Executable, case: Case, chunk: int) -> None:
    (prompt,) = prompts(case, (70,), seed=chunk)
    driver = Driver(exe)
    assert np.array_equal(driver.whole(prompt, chunk), driver.whole(prompt))


def test_wherever_the_blocks_lie(exe: Executable, case: Case) -> None:
    (prompt,) = prompts(case, (70,))
    assert np.array_equal(Driver(exe, seed=1).whole(prompt), Driver(exe, seed=2).whole(prompt))


def test_chosen_rows_are_the_same_rows(exe: Executable, case: Case) -> None:
    a, b = prompts(case, (40, 30))
    driver = Driver(exe)
    want = np.concatenate([driver.whole(a), driver.whole(b)])
    for rows in ([0], [69], [39, 69], [3, 4, 5, 41, 60], list(range(0, 70, 2))):
        got = driver.run([(driver.sequence(a), 40), (driver.sequence(b), 30)], logits_rows=rows)
        assert np.array_equal(got, want[rows])


def test_a_step_run_twice_gives_the_same(exe: Executable, case: Case) -> None:
    """KV writes are idempotent: a step that is repeated over its own writes changes nothing."""
    (prompt,) = prompts(case, (50,))
    driver = Driver(exe)
    sequence = driver.sequence(prompt)
    driver.run([(sequence, 21)])
    first = driver.run([(sequence, 29)])
    sequence.num_computed = 21
    assert np.array_equal(driver.run([(sequence, 29)]), first)


def test_threads(backend: Backend, case: Case) -> None:
    batch = prompts(case, (1, 33, 90, 16, 7))
    results = []
    for num_threads in (1, 2, 3):
        driver = Driver(compile_program(backend, *case.model.build(), kv_dtype=case.kv_dtype, num_threads=num_threads))
        sequences = [driver.sequence(p) for p in batch]
        results.append(driver.run([(s, len(s.tokens)) for s in sequences]))
        driver.exe.close()
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_shared_prefix(exe: Executable, case: Case) -> None:
    """Branches over one prefix's blocks, together in a step, beside the same sequences that own all of their blocks."""
    prefix, *tails = prompts(case, (48, 1, 17, 30, 9))
    driver = Driver(exe)
    want = [driver.whole(np.concatenate([prefix, tail]))[48:] for tail in tails]
    parent = driver.sequence(prefix)
    driver.run([(parent, 48)])
    branches = [driver.fork(parent, 48, tail) for tail in tails]
    together = driver.run([(b, len(tail)) for b, tail in zip(branches, tails, strict=True)])
    for part, alone in zip(np.split(together, np.cumsum([len(t) for t in tails])[:-1]), want, strict=True):
        assert np.array_equal(part, alone)


def test_a_neighbour_that_fails_changes_nothing(exe: Executable, case: Case) -> None:
    """NaN and infinity in the storage next door, in blocks that are somebody else's."""
    (prompt,) = prompts(case, (37,))
    driver = Driver(exe)
    want = driver.whole(prompt)
    sequence = driver.sequence(prompt)
    driver.run([(sequence, 20)])
    for block in set(range(128)) - set(sequence.table):
        exe.write_block(block, np.full(exe.kv_block_bytes // 2, np.inf, np.float16).view(np.uint8))
    assert np.array_equal(driver.run([(sequence, 17)]), want[20:])


@pytest.mark.parametrize("types", [(TensorType.F32,), INTEGER_TYPES], ids=["floats", "integers"])
@pytest.mark.parametrize("poison", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_faulty_token_ends_its_own_sequence_alone(backend: Backend, types: tuple[TensorType, ...], poison: float) -> None:
    """A word whose embedding is broken: NaN logits for every row that sees it, through any weights; the same bits for the others."""
    model = LittleLlama(linear_types=types, tied=False)
    program, tensors = model.build()
    words = values_of(tensors["embed"]).astype(np.float32)
    words[7] = poison
    driver = Driver(compile_program(backend, program, tensors | {"embed": float_tensor("embed", words)}))
    rng = np.random.default_rng(0)
    batch = [rng.integers(8, model.vocab_size, n) for n in (20, 33, 17)]
    want = [driver.whole(p) for p in batch]
    batch[1][18] = 7
    sequences = [driver.sequence(p) for p in batch]
    got = np.split(driver.run([(s, len(s.tokens)) for s in sequences]), np.cumsum([len(p) for p in batch])[:-1])
    assert np.array_equal(got[0], want[0])
    assert np.array_equal(got[2], want[2])
    assert np.array_equal(got[1][:18], want[1][:18])
    assert np.isnan(got[1][18:]).all()


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule(backend: Backend, data: st.DataObject) -> None:
    """Sequences of any length, scheduled in any mixture of chunks and orders, over shared prefixes."""
    case = CASES[data.draw(st.sampled_from([1, 3, 5, 6, len(CASES) - 1]))]
    exe = _compiled(backend, case)
    seed = data.draw(st.integers(0, 99))
    lengths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=6))
    driver = Driver(exe, seed=seed)
    (prefix,) = prompts(case, (32,), seed + 1000)
    shared = [data.draw(st.booleans()) for _ in lengths]
    ids = [np.concatenate([prefix, p]) if s else p for p, s in zip(prompts(case, tuple(lengths), seed), shared, strict=True)]
    want = [driver.whole(i) for i in ids]
    parent = driver.sequence(prefix)
    driver.run([(parent, 32)])
    sequences = [driver.fork(parent, 32, i[32:].tolist()) if s else driver.sequence(i) for i, s in zip(ids, shared, strict=True)]
    while left := [i for i, s in enumerate(sequences) if s.num_computed < len(s.tokens)]:
        scheduled = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        chunks, starts = [], []
        for i in scheduled:
            room = len(sequences[i].tokens) - sequences[i].num_computed
            chunks.append((sequences[i], data.draw(st.integers(1, min(room, 40)))))
            starts.append(sequences[i].num_computed)
        parts = np.split(driver.run(chunks), np.cumsum([n for _, n in chunks])[:-1])
        for i, start, part in zip(scheduled, starts, parts, strict=True):
            assert np.array_equal(part, want[i][start : start + len(part)])


_CACHE: dict[tuple[str, str], Executable] = {}


def _compiled(backend: Backend, case: Case) -> Executable:
    key = (backend.name, case.name)
    if key not in _CACHE:
        _CACHE[key] = compile_program(backend, *case.model.build(), kv_dtype=case.kv_dtype)
    return _CACHE[key]


@pytest.mark.parametrize(
    ("heads", "kv_dtype"),
    [((6, 2, 64), "fp32"), ((6, 2, 64), "fp16"), ((6, 2, 64), "int8"), ((3, 3, 32), "fp32"), ((3, 3, 32), "fp16")],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
def test_long_contexts(backend: Backend, heads: tuple[int, int, int], kv_dtype: KVDType) -> None:
    """Across the fixed places where kernels cut the keys (64 and 512): one by one, in odd chunks, whole, with company, threaded."""
    table = token_table(*heads)
    program, tensors = attention_program(table, *heads)
    lengths = (1, 63, 64, 65, 511, 512, 513, 1100)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(table), 1100)
    results = []
    for num_threads in (1,) if backend.name == "reference" else (1, 2):  # the reference has no threads, and no time
        exe = compile_program(backend, program, tensors, kv_dtype=kv_dtype, max_tokens=1200, max_logits_rows=1200, num_threads=num_threads)
        driver = Driver(exe, num_blocks=400)
        whole = driver.whole(ids)
        for chunk in (97, 512):
            assert np.array_equal(driver.whole(ids, chunk), whole)
        decoding = [driver.sequence(ids[:n]) for n in lengths]  # the last token of each, all in one step
        for sequence in decoding:
            if len(sequence.tokens) > 1:
                driver.run([(sequence, len(sequence.tokens) - 1)], logits_rows=[])
        crowd = driver.run([(sequence, 1) for sequence in decoding])
        assert np.array_equal(crowd, whole[[n - 1 for n in lengths]])
        last = decoding[-1]
        last.num_computed -= 1
        assert np.array_equal(driver.run([(last, 1)])[0], whole[-1])
        results.append(whole)
        exe.close()
    assert np.array_equal(results[0], results[-1])
