"""Token choice against the rule stated a second time, slowly, in plain Python; ties, faults, edits and log-probabilities."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend, ChoiceBatch, Choices, Executable
from octavo.backends.reference.philox import philox4x32, uniform

from .choices import alone, choice_batch, philox, slow_adjusted, slow_choice, slow_weights
from .programs import LittleLlama, compile_program

VOCAB = 200
Float32Array = npt.NDArray[np.float32]
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def exe(backend: Backend) -> Executable:
    model = LittleLlama(vocab_size=32, hidden=32, intermediate=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32)
    return compile_program(backend, *model.build(), max_tokens=16, max_logits_rows=16, num_threads=2)


def one(exe: Executable, logits: npt.ArrayLike, **fields: object) -> int:
    return int(exe.choose(np.atleast_2d(np.array(logits, np.float32)), choice_batch([0], **fields)).token_ids[0])


def separated_logits(rows: int, seed: int = 0, vocab: int = VOCAB) -> Float32Array:
    """Rows whose logits are at least 1/64 apart, so that no rounding moves a threshold."""
    rng = np.random.default_rng(seed)
    grid = np.sort(rng.permuted(np.tile(np.arange(4 * vocab), (rows, 1)), axis=1)[:, :vocab], axis=1) / 64 - 8
    return rng.permuted(grid, axis=1).astype(np.float32)


def random_batch(num: int, rows: int, seed: int = 1) -> ChoiceBatch:
    """Choices with every combination of limits and penalties, several from one row."""
    rng = np.random.default_rng(seed)
    count_choices = np.repeat(np.arange(num), rng.choice([0, 0, 1, 7, 60], num))
    allowed_choices = np.repeat(np.arange(num), rng.choice([0, 0, 0, 3, 40, VOCAB // 2], num))
    distinct = np.concatenate([rng.permutation(VOCAB)[: (count_choices == r).sum()] for r in range(num)])

    def sometimes(values: npt.NDArray[np.floating | np.integer], neutral: float, dtype: type) -> npt.NDArray[np.generic]:
        return np.where(rng.random(num) < 0.5, neutral, values).astype(dtype)

    return choice_batch(
        rng.integers(0, rows, num),
        temperature=sometimes(rng.choice([0.0, 0.05, 0.3, 0.7, 1.3, 5.0], num), 1.0, np.float32),
        top_k=sometimes(rng.choice([1, 2, 3, 10, 50, VOCAB - 1, VOCAB, 10**9], num), 0, np.int32),
        top_p=sometimes(rng.choice([1e-6, 0.1, 0.5, 0.83, 0.99], num), 1.0, np.float32),
        min_p=sometimes(rng.choice([1e-5, 0.013, 0.2, 1.0], num), 0.0, np.float32),
        seed=rng.integers(0, 2**64, num, dtype=np.uint64),
        branch=rng.integers(0, 128, num),
        position=rng.integers(0, 2**32, num),
        num_logprobs=rng.choice([-1, 0, 1, 5, 20], num),
        edit_choices=np.sort(rng.integers(0, num, num)),
        edit_tokens=rng.integers(0, VOCAB, num),
        edit_values=rng.choice([-INF, -2.5, 0.75, 20.0], num),
        typical_p=sometimes(rng.choice([1e-6, 0.2, 0.5, 0.95], num), 1.0, np.float32),
        repetition_penalty=sometimes(rng.choice([0.5, 1.1, 1.7], num), 1.0, np.float32),
        frequency_penalty=sometimes(rng.choice([-2.0, 0.3, 1.9], num), 0.0, np.float32),
        presence_penalty=sometimes(rng.choice([-1.1, 0.2, 2.0], num), 0.0, np.float32),
        count_choices=count_choices,
        count_tokens=distinct,
        counts=rng.integers(0, 5, len(count_choices)),
        allowed_choices=allowed_choices,
        allowed_tokens=rng.integers(0, VOCAB, len(allowed_choices)),
    )


def test_every_combination_follows_the_rule(exe: Executable) -> None:
    logits, batch = separated_logits(20), random_batch(600, 20)
    got = exe.choose(logits, batch)
    for r in range(len(batch.rows)):
        want = slow_choice(
            slow_adjusted(logits[batch.rows[r]], batch, r), float(batch.temperature[r]),
            int(batch.seed[r]), int(batch.branch[r]), int(batch.position[r]),
            top_k=int(batch.top_k[r]), top_p=float(batch.top_p[r]), min_p=float(batch.min_p[r]), typical_p=float(batch.typical_p[r]),
        )  # fmt: skip
        assert got.token_ids[r] == want, f"choice {r}"


def test_a_choice_in_a_batch_is_the_choice_alone(exe: Executable) -> None:
    """The same token and the same bits of its log-probabilities."""
    logits, batch = separated_logits(20, seed=4), random_batch(300, 20, seed=5)
    together = exe.choose(logits, batch)
    for r in range(len(batch.rows)):
        single = exe.choose(logits, alone(batch, r))
        width = single.top_ids.shape[1]
        assert width == max(0, batch.num_logprobs[r])
        assert single.token_ids[0] == together.token_ids[r]
        assert single.ranks[0] == together.ranks[r]
        assert np.array_equal(single.logprobs, together.logprobs[r : r + 1], equal_nan=True)
        assert np.array_equal(single.top_ids[0], together.top_ids[r, :width])
        assert np.array_equal(single.top_logprobs[0], together.top_logprobs[r, :width], equal_nan=True)


def test_threads_do_not_matter(backend: Backend, exe: Executable) -> None:
    logits, batch = separated_logits(20, seed=2), random_batch(200, 20, seed=3)
    model = LittleLlama(vocab_size=32, hidden=32, intermediate=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32)
    one_thread = compile_program(backend, *model.build(), num_threads=1).choose(logits, batch)
    several = exe.choose(logits, batch)
    for name in ("token_ids", "logprobs", "ranks", "top_ids", "top_logprobs"):
        assert np.array_equal(getattr(one_thread, name), getattr(several, name), equal_nan=name.endswith("logprobs"))


def test_logprobs_ranks_and_top_ids(exe: Executable) -> None:
    """Of the logits as given: edits and temperature change the choice, not the report."""
    logits, batch = separated_logits(20, seed=7), random_batch(200, 20, seed=8)
    got: Choices = exe.choose(logits, batch)
    assert got.top_ids.shape == got.top_logprobs.shape == (200, 20)
    for r, (token, k) in enumerate(zip(got.token_ids, batch.num_logprobs, strict=True)):
        row = logits[batch.rows[r]].astype(np.float64)
        logprobs = row - row.max() - math.log(np.exp(row - row.max()).sum())
        if k < 0 or token < 0:
            assert np.isnan(got.logprobs[r])
            assert got.ranks[r] == 0
        else:
            assert abs(got.logprobs[r] - logprobs[token]) < 4e-6
            assert got.ranks[r] == 1 + (row > row[token]).sum()
        k = max(0, k) if token >= 0 else 0
        order = np.argsort(-row, kind="stable")[:k]
        assert got.top_ids[r].tolist() == order.tolist() + [-1] * (20 - k)
        assert np.allclose(got.top_logprobs[r, :k], logprobs[order], rtol=0, atol=4e-6)


def test_greedy_takes_the_lowest_id_among_equals(exe: Executable) -> None:
    for vocab in (1, 7, 8, 9, 31, 64, 1000):
        for first in {0, vocab // 2, vocab - 1}:
            row = np.full(vocab, -1.0, np.float32)
            row[first:] = 2.0
            assert one(exe, row, temperature=0.0) == first


def test_ties(exe: Executable) -> None:
    """Equal logits: top_k keeps all that reach the k-th largest, top_p the lowest ids; the report lists lower ids first."""
    row = [1.0, 3.0, 2.0, 3.0, 2.0, 3.0, 0.0, 2.0]
    seeds = range(300)

    def seen(**limits: float) -> set[int]:
        batch = choice_batch([0] * 300, seed=list(seeds), temperature=8.0, **limits)
        return set(exe.choose(np.array([row], np.float32), batch).token_ids.tolist())

    assert seen(top_k=1) == {1, 3, 5}
    assert seen(top_k=4) == {1, 2, 3, 4, 5, 7}
    assert seen(top_p=0.01) == {1}
    assert seen(top_k=3, top_p=0.5) == {1, 3}
    assert seen(top_k=3, top_p=0.7) == {1, 3, 5}
    assert seen(min_p=1.0) == {1, 3, 5}
    got = exe.choose(np.array([row], np.float32), choice_batch([0], temperature=0.0, num_logprobs=7))
    assert got.top_ids[0].tolist() == [1, 3, 5, 2, 4, 7, 0]


def test_a_share_that_is_just_reached_suffices(exe: Executable) -> None:
    """Four equal tokens: half of the mass is two of them; a hair more is three."""
    for top_p, kept in [(0.25, 1), (0.5, 2), (0.75, 3), (np.nextafter(np.float32(0.5), np.float32(1)), 3), (1.0, 4)]:
        batch = choice_batch([0] * 200, seed=list(range(200)), top_p=top_p)
        assert set(exe.choose(np.zeros((1, 4), np.float32), batch).token_ids.tolist()) == set(range(kept))


def test_rank_of_a_tied_token_is_its_place_in_the_list(exe: Executable) -> None:
    logits = np.zeros((1, 30), np.float32)
    batch = choice_batch([0] * 50, seed=list(range(50)), num_logprobs=20)
    got = exe.choose(logits, batch)
    assert np.array_equal(got.ranks, got.token_ids + 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_faulty_rows_fail_alone(exe: Executable, temperature: float) -> None:
    logits = separated_logits(6)
    logits[1, 0] = NAN
    logits[2, VOCAB - 1] = NAN
    logits[3, :] = -INF
    logits[4, :-1] = -INF
    got = exe.choose(logits, choice_batch(range(6), temperature=temperature, num_logprobs=2, seed=9))
    clean = exe.choose(separated_logits(6), choice_batch(range(6), temperature=temperature, num_logprobs=2, seed=9))
    assert got.token_ids[1:4].tolist() == [-1, -1, -1]
    assert got.token_ids[4] == VOCAB - 1
    assert got.logprobs[4] == 0.0
    assert (got.ranks[1:4] == 0).all()
    assert np.isnan(got.logprobs[1:4]).all()
    assert (got.top_ids[1:4] == -1).all()
    for r in (0, 5):
        assert got.token_ids[r] == clean.token_ids[r]
        assert got.logprobs[r] == clean.logprobs[r]


def test_nan_is_found_wherever_it_hides(exe: Executable) -> None:
    for vocab in (1, 2, 7, 8, 9, 33, 100):
        logits = np.tile(np.arange(vocab, dtype=np.float32), (vocab, 1))
        np.fill_diagonal(logits, NAN)
        for temperature in (0.0, 1.0):
            assert (exe.choose(logits, choice_batch(range(vocab), temperature=temperature)).token_ids == -1).all()


def test_banned_tokens_are_never_chosen(exe: Executable) -> None:
    """Edits of -inf: all but one token; all of them; the favourite; and several edits of one token add up."""
    row = np.array([[5.0, 1.0, 4.0, 2.0]], np.float32)
    ban = {"edit_choices": [0, 0, 0], "edit_tokens": [0, 1, 2], "edit_values": [-INF] * 3}
    for temperature in (0.0, 1.0):
        assert exe.choose(row, choice_batch([0], temperature=temperature, **ban)).token_ids[0] == 3
        everything = {"edit_choices": [0] * 4, "edit_tokens": [0, 1, 2, 3], "edit_values": [-INF] * 4}
        assert exe.choose(row, choice_batch([0], temperature=temperature, **everything)).token_ids[0] == -1
    added = {"edit_choices": [0, 0], "edit_tokens": [1, 1], "edit_values": [2.0, 2.5]}
    assert exe.choose(row, choice_batch([0], temperature=0.0, **added)).token_ids[0] == 1
    batch = choice_batch([0] * 500, seed=list(range(500)), edit_choices=range(500), edit_tokens=[0] * 500, edit_values=[-INF] * 500)
    assert 0 not in exe.choose(row, batch).token_ids
    assert np.array_equal(row, [[5.0, 1.0, 4.0, 2.0]]), "the logits themselves must stay as they are"


def test_only_allowed_tokens_are_chosen(exe: Executable) -> None:
    row = np.array([[5.0, 1.0, 4.0, 2.0]], np.float32)
    several = {"allowed_choices": [0] * 3, "allowed_tokens": [3, 1, 3]}
    assert exe.choose(row, choice_batch([0, 0], temperature=0.0, **several)).token_ids.tolist() == [3, 0]
    batch = choice_batch([0] * 400, seed=range(400), allowed_choices=np.repeat(np.arange(400), 2), allowed_tokens=[1, 3] * 400)
    assert set(exe.choose(row, batch).token_ids.tolist()) == {1, 3}
    ban = {"edit_choices": [0], "edit_tokens": [3], "edit_values": [-INF]}
    assert exe.choose(row, choice_batch([0], allowed_choices=[0], allowed_tokens=[3], **ban)).token_ids[0] == -1


@pytest.mark.parametrize("fault", [NAN, INF])
def test_a_fault_outside_the_allowed_set_is_one(exe: Executable, fault: float) -> None:
    for temperature in (0.0, 1.0):
        one_is_allowed = {"temperature": temperature, "allowed_choices": [0], "allowed_tokens": [0]}
        assert exe.choose(np.array([[1.0, fault, 2.0]], np.float32), choice_batch([0], **one_is_allowed)).token_ids[0] == -1


def test_penalties_are_the_formulas(exe: Executable) -> None:
    """Counts of 0 (tokens of the prompt alone) meet the repetition penalty only; every logit is read out through the report."""
    logits = np.array([[2.0, -2.0, 1.0, -1.0, 3.0]], np.float32)
    settings = {"repetition_penalty": 1.6, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    counted = {"count_choices": [0, 0, 0, 0], "count_tokens": [0, 1, 2, 3], "counts": [0, 0, 3, 1]}
    want = np.array([2 / 1.6, -2 * 1.6, 1 / 1.6 - 3 * 0.5 - 0.25, -1 * 1.6 - 0.5 - 0.25, 3.0])
    assert np.allclose(slow_adjusted(logits[0].tolist(), choice_batch([0], **settings, **counted), 0), want, atol=1e-6)
    batch = choice_batch([0] * 4000, seed=range(4000), **settings, **{
        name: np.tile(values, 4000) if name != "count_choices" else np.repeat(np.arange(4000), 4) for name, values in counted.items()
    })  # fmt: skip
    frequency = np.bincount(exe.choose(logits, batch).token_ids, minlength=5) / 4000
    assert np.abs(frequency - np.exp(want) / np.exp(want).sum()).max() < 0.03


def test_penalties_of_a_token_that_was_made_likely(exe: Executable) -> None:
    """Edits come before penalties: a bias is penalised too."""
    edits = {"edit_choices": [0], "edit_tokens": [1], "edit_values": [4.0]}
    counted = {"count_choices": [0], "count_tokens": [1], "counts": [1], "repetition_penalty": 2.0}
    row = np.array([[1.0, -1.0, 1.4]], np.float32)  # -1 + 4 = 3, and 3 / 2 = 1.5; the other way round it would be -2 + 4 = 2
    assert exe.choose(row, choice_batch([0], temperature=0.0, **edits, **counted)).token_ids[0] == 1
    row[0, 2] = 1.6
    assert exe.choose(row, choice_batch([0], temperature=0.0, **edits, **counted)).token_ids[0] == 2


def test_the_report_may_be_of_another_row(exe: Executable) -> None:
    """Where a caller has changed a row, the log-probabilities are still the model's."""
    logits = separated_logits(4, seed=12)
    changed = exe.choose(logits, choice_batch([2, 3], report_rows=[0, 1], temperature=0.0, num_logprobs=3))
    assert changed.token_ids.tolist() == logits[2:].argmax(axis=1).tolist()
    for r in range(2):
        assert changed.top_ids[r].tolist() == np.argsort(-logits[r], kind="stable")[:3].tolist()
        assert changed.ranks[r] == 1 + (logits[r] > logits[r][changed.token_ids[r]]).sum()


def test_typical_tokens_are_those_near_the_entropy(exe: Executable) -> None:
    """By hand: of p = (0.5, 0.25, 0.125, 0.125) with entropy 1.75 bits, informations 1, 2, 3, 3 lie 0.75, 0.25, 1.25, 1.25 from it."""
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], np.float32))
    for typical_p, kept in [(0.2, {1}), (0.26, {0, 1}), (0.74, {0, 1}), (0.8, {0, 1, 2}), (0.9, {0, 1, 2, 3})]:
        batch = choice_batch([0] * 300, seed=range(300), typical_p=typical_p)
        assert set(exe.choose(logits, batch).token_ids.tolist()) == kept
    batch = choice_batch([0] * 300, seed=range(300), typical_p=0.3, top_k=1)  # of what is left, one token, all are typical
    assert set(exe.choose(logits, batch).token_ids.tolist()) == {0}


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1.0, 100.0])
def test_extreme_temperatures(exe: Executable, temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.permuted(np.tile(np.linspace(-80, 80, VOCAB), (50, 1)), axis=1).astype(np.float32)
    batch = choice_batch(range(50), temperature=temperature, seed=range(50))
    want = [slow_choice([float(x) for x in row], float(np.float32(temperature)), seed=r) for r, row in enumerate(logits)]
    assert exe.choose(logits, batch).token_ids.tolist() == want


def test_a_large_vocabulary(exe: Executable) -> None:
    logits = separated_logits(2, vocab=49152)
    limited = {"top_k": [0, 40, 0, 0], "top_p": [1.0, 1.0, 0.95, 1.0], "min_p": [0, 0, 0, 0.01], "typical_p": [1, 1, 1, 0.6]}
    got = exe.choose(logits, choice_batch([0, 0, 1, 1], temperature=0.9, seed=11, num_logprobs=20, **limited))
    min_p, typical_p = float(np.float32(0.01)), float(np.float32(0.6))
    limits = [
        {},
        {"top_k": 40},
        {"top_p": float(np.float32(0.95))},
        {"min_p": min_p, "typical_p": typical_p},
    ]
    for r, limit in enumerate(limits):
        row = [float(x) for x in logits[r // 2]]
        assert got.token_ids[r] == slow_choice(row, float(np.float32(0.9)), seed=11, **limit)
        assert got.top_ids[r].tolist() == np.argsort(-logits[r // 2], kind="stable")[:20].tolist()


def test_no_choices(exe: Executable) -> None:
    got = exe.choose(np.zeros((3, 10), np.float32), choice_batch([]))
    assert got.token_ids.shape == (0,)
    assert got.top_ids.shape == (0, 0)


PHILOX_KNOWN_ANSWERS = [  # Random123, kat_vectors, philox4x32 10
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), PHILOX_KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, answer)]
    assert list(philox4x32(tuple(words[0]), tuple(words[1]))) == words[2]  # type: ignore[arg-type]
    assert philox(words[0], words[1]) == words[2]


def test_draws_are_keyed_by_seed_branch_and_position(exe: Executable) -> None:
    """Over equal logits the chosen id is ⌊u · V⌋: it reads the generator out."""
    vocab, rng = 4096, np.random.default_rng(0)
    seed = rng.integers(0, 2**64, 200, dtype=np.uint64)
    branch, position = rng.integers(0, 2**32, (2, 200))
    seed[:4], branch[:4], position[:4] = [0, 2**64 - 1, 1, 2**32], [0, 2**32 - 1, 1, 0], [0, 2**32 - 1, 0, 1]
    got = exe.choose(np.zeros((1, vocab), np.float32), choice_batch([0] * 200, seed=seed, branch=branch, position=position))
    want = [int(uniform(int(s), int(b), int(p)) * vocab) for s, b, p in zip(seed, branch, position, strict=True)]
    assert got.token_ids.tolist() == want


def test_slow_weights_are_probabilities_of_the_rule() -> None:
    """The statement itself, on numbers small enough to check by hand."""
    logits = [math.log(x) for x in (0.4, 0.1, 0.3, 0.2)]
    assert [round(w / 0.4, 9) > 0 for w in slow_weights(logits, 1.0, top_p=0.7)] == [True, False, True, False]
    assert [w > 0 for w in slow_weights(logits, 1.0, top_p=0.71)] == [True, False, True, True]
    assert [w > 0 for w in slow_weights(logits, 1.0, top_k=3, top_p=0.7)] == [True, False, True, False]
    assert [w > 0 for w in slow_weights(logits, 1.0, min_p=0.6)] == [True, False, True, False]
