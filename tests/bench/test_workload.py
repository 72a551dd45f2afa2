"""Workloads: lengths with the paper's means, prompts that are seeded, new in each repetition and shared where they should be."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.bench.dataset import Exchange, read_exchanges
from octavo.bench.lengths import TRACES, LogNormal
from octavo.bench.vocabulary import WORDS, EncodedWords, EnglishWords, TokenIds
from octavo.bench.workload import BenchRequest, Workload, fit

IDS = TokenIds(range(1000, 50_000))
PAPER = {"sharegpt": (161, 338), "alpaca": (19, 58)}


@pytest.mark.parametrize("name", sorted(PAPER))
def test_traces_have_the_papers_means(name: str) -> None:
    trace, rng = TRACES[name], random.Random(11)
    for lengths, mean in zip((trace.input, trace.output), PAPER[name], strict=True):
        drawn = [lengths.draw(rng) for _ in range(20_000)]
        assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.04)
        assert lengths.least <= min(drawn) <= max(drawn) <= lengths.most
        assert statistics.median(drawn) < statistics.fmean(drawn), "no long tail"
        assert len(set(drawn)) > 50


@settings(max_examples=20)
@given(st.floats(10, 500), st.floats(0.1, 1.5))
def test_the_mean_survives_cutting(mean: float, sigma: float) -> None:
    lengths, rng = LogNormal(mean, sigma, 1, 1000), random.Random(3)
    drawn = [lengths.draw(rng) for _ in range(4000)]
    error = 4 * statistics.stdev(drawn) / len(drawn) ** 0.5
    assert abs(statistics.fmean(drawn) - mean) < error + 0.02 * mean


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 99), st.integers(-2, 5))
def test_prompts_are_seeded_and_new_in_each_repetition(input_len: int, num_prompts: int, seed: int, rep: int) -> None:
    workload = Workload(num_prompts=num_prompts, input_len=input_len, output_len=3, n=2, seed=seed)
    requests = workload.requests(IDS, rep)
    assert [(len(r.prompt), r.num_prompt_tokens, r.output_len, r.n) for r in requests] == [(input_len, input_len, 3, 2)] * num_prompts
    assert all(1000 <= int(token) < 50_000 for r in requests for token in r.prompt)
    assert requests == workload.requests(IDS, rep)
    if input_len > 8:
        assert requests != workload.requests(IDS, rep + 1)
        assert requests != Workload(num_prompts=num_prompts, input_len=input_len, output_len=3, n=2, seed=seed + 1).requests(IDS, rep)


@given(st.sampled_from(["sharegpt", "alpaca"]), st.integers(0, 9))
def test_lengths_are_the_same_in_each_repetition(kind: str, seed: int) -> None:
    workload = Workload(kind=kind, num_prompts=20, seed=seed)  # type: ignore[arg-type]
    shapes = [[(r.num_prompt_tokens, r.output_len) for r in workload.requests(IDS, rep)] for rep in (0, 1)]
    assert shapes[0] == shapes[1]
    assert len(set(shapes[0])) > 5
    longer = Workload(kind=kind, num_prompts=20, seed=seed, output_len=7)  # type: ignore[arg-type]
    assert {r.output_len for r in longer.requests(IDS, 0)} == {7}


@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 20), st.integers(2, 12))
def test_prefixes_are_shared_in_turn(num_prefixes: int, prefix_len: int, own: int, num_prompts: int) -> None:
    workload = Workload("shared-prefix", num_prompts, own, 5, num_prefixes, prefix_len)
    requests = workload.requests(IDS, 0)
    for i, request in enumerate(requests):
        assert request.num_prompt_tokens == len(request.prompt) == prefix_len + own
        assert request.prompt[:prefix_len] == requests[i % num_prefixes].prompt[:prefix_len]
    assert len({tuple(r.prompt[:prefix_len]) for r in requests}) == min(num_prefixes, num_prompts)  # type: ignore[arg-type]


def test_words() -> None:
    [request] = Workload(num_prompts=1, input_len=50).requests(EnglishWords(), 0)
    assert isinstance(request.prompt, str)
    assert len(request.prompt.split()) == 50
    assert set(request.prompt.split()) <= set(WORDS)
    assert len(WORDS) == len(set(WORDS)) > 250
    [request] = Workload(num_prompts=1, input_len=50).requests(EncodedWords(lambda text: list(text.encode())), 0)
    assert isinstance(request.prompt, list)
    assert len(request.prompt) == 50
    assert set(bytes(request.prompt).decode()) <= set(" abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"input_len": 0}, "input_len=0"),
        ({"n": -1}, "n=-1"),
        ({"kind": "poems"}, "workload='poems'"),
        ({"kind": "sharegpt", "input_len": 5}, "input_len=5"),
        ({"kind": "file"}, "dataset=None"),
        ({"dataset": "x.json"}, "dataset='x.json'"),
    ],
)
def test_what_is_no_workload(given: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Workload(**given)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="90 tokens in and 20 out are 110: this model takes at most 100"):
        fit(Workload(), [BenchRequest([1] * 90, 90, 20), BenchRequest([1], 1, 1)], 100)
    spread = Workload(kind="sharegpt", num_prompts=100)
    requests = spread.requests(IDS, 0)
    assert fit(spread, requests, 400) == [r for r in requests if r.num_prompt_tokens + r.output_len <= 400]
    with pytest.raises(ValueError, match="at most 5"):
        fit(spread, requests, 5)


SHAREGPT = {
    "conversations": [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hi there"}, {"from": "gpt", "value": "hello"}]
}
FORMS = [
    (SHAREGPT, Exchange("hi there", "hello")),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]}, Exchange("a", "b c")),
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, Exchange("Add.\n\n1 2", "3")),
    ({"instruction": "Sing.", "input": "", "output": "la"}, Exchange("Sing.", "la")),
    ({"prompt": "p", "completion": "q"}, Exchange("p", "q")),
    ({"prompt": "p", "output_len": 7}, Exchange("p", "", 7)),
]
NOTHING = [
    {},
    [],
    3,
    {"prompt": "p"},
    {"conversations": [{"from": "gpt", "value": "x"}]},
    {"prompt": " ", "output": "x"},
    {"messages": "no"},
]


@pytest.mark.parametrize("lines", [False, True])
def test_datasets(lines: bool, tmp_path: Path) -> None:
    path, entries = tmp_path / "set.json", [*NOTHING, *(form for form, _ in FORMS)]
    entries = [e for e in entries if not (lines and isinstance(e, list))]
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    assert read_exchanges(path) == [exchange for _, exchange in FORMS]


def test_a_dataset_as_a_workload(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"prompt": f"prompt {i}", "output": "y" * (i + 1)} for i in range(50)]))

    def encode(text: str) -> list[int]:
        return list(text.encode())

    workload = Workload(kind="file", num_prompts=10, dataset=str(path), seed=3)
    requests = workload.requests(IDS, 0, encode)
    assert requests == workload.requests(IDS, 0, encode)
    assert requests != workload.requests(IDS, 1, encode)
    assert len({tuple(r.prompt) for r in requests}) == 10
    for request in requests:
        i = int(bytes(request.prompt).decode().split()[1])  # type: ignore[arg-type]
        assert (request.num_prompt_tokens, request.output_len) == (len(f"prompt {i}"), i + 1)
    texts = workload.requests(IDS, 0, encode, as_text=True)
    assert [r.prompt for r in texts] == [bytes(r.prompt).decode() for r in requests]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="output_len"):
        workload.requests(IDS, 0)
    assert {r.output_len for r in Workload(kind="file", dataset=str(path), output_len=4).requests(IDS, 0)} == {4}
    assert len(Workload(kind="file", num_prompts=99, dataset=str(path), output_len=4).requests(IDS, 0)) == 50


@pytest.mark.parametrize("text", ["", "[]", "{", "[{]", '{"prompt": "p"}'])
def test_what_is_no_dataset(text: str, tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"set\.json"):
        read_exchanges(path)
