"""Beam search's rule against the same search over whole arrays, on random models; its parameters at the door."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.decoding import Beam, BeamSearch, BeamSearchParams
from tests.decoding.slow_beam_search import slow_beam_search

VOCAB = 40


def random_model(seed: int, sharpness: float) -> Any:
    def logits(tokens: list[int]) -> npt.NDArray[np.float64]:
        return np.random.default_rng([seed, *tokens]).normal(size=VOCAB) * sharpness

    return logits


def log_softmax(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = z - z.max() - np.log(np.exp(z - z.max()).sum())
    return result


def text(beam: Beam) -> list[int]:
    return [link.token_id for link in beam.chain()]


@given(
    seed=st.integers(0, 10**6),
    sharpness=st.sampled_from([0.1, 1.0, 3.0]),
    width=st.integers(1, 9),
    max_tokens=st.integers(1, 9),
    min_tokens=st.integers(0, 6),
    length_penalty=st.sampled_from([-1.5, 0.0, 0.3, 1.0, 2.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
    ending_ids=st.frozensets(st.integers(0, VOCAB - 1), max_size=3),
    stop_every=st.sampled_from([0, 0, 2, 3, 11]),
)
def test_finds_what_the_search_over_whole_arrays_finds(
    seed: int, sharpness: float, width: int, max_tokens: int, min_tokens: int, length_penalty: float,
    early_stopping: Any, ending_ids: frozenset[int], stop_every: int,
) -> None:  # fmt: skip
    model = random_model(seed, sharpness)

    def completes(tokens: list[int]) -> bool:
        return stop_every > 0 and sum(tokens) % stop_every == 0

    params = BeamSearchParams(
        beam_width=width, max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), length_penalty=length_penalty,
        early_stopping=early_stopping,
    )  # fmt: skip
    search = BeamSearch(params, ending_ids, max_tokens)
    while not search.done:
        rows = []
        for beam in search.beams:
            logprobs = log_softmax(model(text(beam)))
            order = np.argsort(-logprobs, kind="stable")[: search.num_continuations]
            rows.append([(int(i), float(logprobs[i])) for i in order])
        before = search.beams
        growths = search.step(rows, lambda i, token, before=before: completes([*text(before[i]), token]))  # type: ignore[misc]
        assert [growth.beam for growth in growths] == ([] if search.done else search.beams)
        assert all(growth.beam.parent is before[growth.parent] for growth in growths)
    want = slow_beam_search(
        model, width, max_tokens, ending_ids=ending_ids, min_tokens=min(min_tokens, max_tokens), length_penalty=length_penalty,
        early_stopping=early_stopping, completes=completes,
    )  # fmt: skip
    assert [text(h.beam) for h in search.cut()] == [tokens for tokens, _ in want]
    assert [h.score for h in search.cut()] == pytest.approx([score for _, score in want], abs=1e-9)
    for hypothesis in search.cut():
        chain = hypothesis.beam.chain()
        assert hypothesis.beam.cumulative_logprob == pytest.approx(sum(link.logprob for link in chain))
        assert all(link.siblings[link.rank - 1] == (link.token_id, link.logprob) for link in chain)


def test_what_is_cut_off_is_the_finished_and_the_growing_together() -> None:
    search = BeamSearch(BeamSearchParams(beam_width=2, max_tokens=9, length_penalty=0.0), frozenset({0}), 9)
    assert search.cut() == []
    search.step([[(0, -1.0), (1, -1.1), (2, -1.2), (3, -1.3)]], lambda i, token: False)
    assert [(text(h.beam), h.score) for h in search.cut()] == [([0], -1.0), ([1], -1.1)]


def test_extreme_length_penalties_rank_by_their_limits() -> None:
    for penalty, best in [(100.0, [1, 0]), (-100.0, [0])]:
        params = BeamSearchParams(beam_width=1, max_tokens=2, length_penalty=penalty, early_stopping="never")
        search = BeamSearch(params, frozenset({0}), 2)
        while not search.done:
            search.step([[(0, -0.6), (1, -0.7)]], lambda i, token: False)
        assert text(search.cut()[0].beam) == best
    long = BeamSearch(BeamSearchParams(beam_width=1, max_tokens=None, length_penalty=100.0), frozenset(), 10**6)
    assert long.score(Beam(cumulative_logprob=-5.0, num_tokens=10**6)) == 0.0
    short = BeamSearch(BeamSearchParams(beam_width=1, max_tokens=None, length_penalty=-100.0), frozenset(), 10**6)
    assert short.score(Beam(cumulative_logprob=-5.0, num_tokens=10**6)) == -float("inf")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beam_width", 0), ("beam_width", 65), ("beam_width", 2.0), ("beam_width", True), ("n", 0), ("n", 5), ("n", "1"),
        ("length_penalty", float("nan")), ("length_penalty", "1"), ("length_penalty", 101), ("early_stopping", "always"),
        ("early_stopping", 1), ("max_tokens", 0), ("min_tokens", 17), ("stop", ""), ("stop_token_ids", [-1]), ("logprobs", 21),
    ],
)  # fmt: skip
def test_refused_at_the_door(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}=.*is invalid"):
        BeamSearchParams(**{"beam_width": 4, field: value})
