"""The client against a server with every oddity that servers have: tokens are counted right, faults are named, moments are true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.bench.events import EventSplitter
from octavo.bench.http import HTTPFault, Refusal, Server
from octavo.bench.records import RequestRecord
from octavo.bench.serving import Target, ask, negotiated, only_model, run_serving
from octavo.bench.smooth import run_smooth
from octavo.bench.workload import BenchRequest
from tests.bench.stub import TOKEN_S, Stub, stub_server


@pytest.fixture(scope="module")
def module_stub() -> Iterator[Stub]:
    with stub_server() as stub:
        yield stub


@pytest.fixture
def stub(module_stub: Stub) -> Stub:
    module_stub.asked.clear()
    module_stub.headers.clear()
    return module_stub


def asked(
    stub: Stub, model: str, output_len: int = 8, n: int = 1, *, endpoint: str = "completions", timeout_s: float = 20.0
) -> RequestRecord:
    target = Target(Server(stub.url, "a-key"), model, endpoint, timeout_s)  # type: ignore[arg-type]
    return asyncio.run(ask(target, BenchRequest("hello", 5, output_len, n), time.perf_counter()))


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_plain_answer(stub: Stub, endpoint: str) -> None:
    record = asked(stub, "plain", endpoint=endpoint)
    assert record.error is None
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens, record.counted_by) == (11, 8, 3, "usage")
    [moments] = record.arrivals
    assert len(moments) <= 8, "an end is no token"
    assert len(moments) >= 4
    assert record.tpot_s == pytest.approx((moments[-1] - moments[0]) / 7)
    assert record.e2el_s >= 7 * TOKEN_S
    [body] = stub.asked
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["ignore_eos"] is True
    assert body["temperature"] == 0
    assert ("messages" in body) == (endpoint == "chat")
    [head] = stub.headers
    assert head.startswith(f"POST /v1/{'chat/' if endpoint == 'chat' else ''}completions HTTP/1.1\r\n")
    assert "Authorization: Bearer a-key\r\n" in head


@pytest.mark.parametrize(
    ("model", "tokens", "counted_by", "most_arrivals"),
    [
        ("several_tokens_an_event", 8, "usage", 4),
        ("events_in_one_piece", 8, "events", 1),
        ("no_usage", 8, "length", 7),
        ("stops_early", 2, "events", 2),
        ("other_line_ends", 8, "usage", 8),
        ("without_end", 8, "usage", 8),
    ],
)
def test_tokens_are_counted_right(stub: Stub, model: str, tokens: int, counted_by: str, most_arrivals: int) -> None:
    record = asked(stub, model)
    assert record.error is None
    assert (record.output_tokens, record.counted_by) == (tokens, counted_by)
    assert 1 <= len(record.arrivals[0]) <= most_arrivals
    assert record.itl_s == [pytest.approx(b - a) for a, b in record.gaps()]
    assert all(gap > 0 for gap in record.itl_s), "what comes at once is one arrival"


def test_branches_that_count_for_themselves_are_added_up(stub: Stub) -> None:
    record = asked(stub, "branches_with_usage_each", n=3)
    assert (record.output_tokens, record.counted_by, record.prompt_tokens) == (24, "usage", 9)
    assert record.tpot_s == pytest.approx((record.last_s - record.first_s) / 7)


def test_branches_have_moments_of_their_own(stub: Stub) -> None:
    record = asked(stub, "branches", n=3)
    assert record.output_tokens == 24
    assert len(record.arrivals) == 3
    assert record.arrivals[2][0] < record.arrivals[1][0] < record.arrivals[0][0]
    assert record.first_s == record.arrivals[2][0]
    assert record.tpot_s == pytest.approx((record.last_s - record.first_s) / 7)
    assert (stub.asked[0]["n"], stub.asked[0]["temperature"]) == (3, 1.0)


def test_a_role_is_no_token_but_a_thought_is(stub: Stub) -> None:
    record = asked(stub, "thinks_first", endpoint="chat")
    assert record.error is None
    assert record.output_tokens == 8
    assert record.ttft_s >= 0.05


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("busy", "HTTP 503: overloaded, try later"),
        ("page", "HTTP 502: <html>bad gateway"),
        ("too_long", "HTTP 400: the prompt is longer than the context"),
        ("fails_midway", "the stream said: out of blocks"),
        ("breaks_off", "the server closed the connection in the middle of its answer"),
        ("ends_too_soon", "the stream ended before the answer did"),
        ("hangs_up", "the server closed the connection without an answer"),
        ("says_nothing", "the answer has no tokens"),
        ("babbles", "an event of the stream is not JSON"),
        ("is_no_web_server", "the answer is not HTTP"),
        ("sleeps", "no answer within 0.3 s"),
    ],
)
def test_faults_are_named(stub: Stub, model: str, error: str) -> None:
    record = asked(stub, model, timeout_s=0.3 if model == "sleeps" else 20.0)
    assert record.error is not None
    assert record.error.startswith(error)
    assert len(record.error) < 300
    assert not record.ok


def test_nobody_there() -> None:
    record = asyncio.run(ask(Target(Server("http://127.0.0.1:9"), "m"), BenchRequest("x", 1, 1), time.perf_counter()))
    assert record.error == "no connection: Connection refused" or (record.error or "").startswith("no connection")


@pytest.mark.parametrize(
    ("model", "refused", "tokens"),
    [("plain", set(), 3), ("strict", {"ignore_eos", "max_tokens"}, 3), ("vague", {"ignore_eos", "stream_options"}, 3)],
)
def test_what_a_server_refuses_is_left_out(stub: Stub, model: str, refused: set[str], tokens: int) -> None:
    async def run() -> tuple[Target, RequestRecord]:
        target = await negotiated(Target(Server(stub.url), model), BenchRequest("hello", 5, 2))
        return target, await ask(target, BenchRequest("hello", 5, tokens), time.perf_counter())

    target, record = asyncio.run(run())
    assert target.refused == refused
    assert (record.error, record.output_tokens) == (None, tokens)


@pytest.mark.parametrize("model", ["busy", "too_long"])
def test_a_refusal_of_something_else_is_no_negotiation(stub: Stub, model: str) -> None:
    with pytest.raises(Refusal):
        asyncio.run(negotiated(Target(Server(stub.url), model), BenchRequest("hello", 5, 2)))
    assert len(stub.asked) == 1


def test_requests_are_sent_when_they_should(stub: Stub) -> None:
    times, requests = [0.0, 0.05, 0.05, 0.2], [BenchRequest([1, 2, 3], 3, 2) for _ in range(4)]
    finished: list[int] = []
    records = asyncio.run(run_serving(Target(Server(stub.url), "plain"), requests, times, on_finished=lambda: finished.append(1)))
    assert len(finished) == 4
    for record, due in zip(records, times, strict=True):
        assert due <= record.sent_s < due + 0.5
    assert stub.asked[0]["prompt"] == [1, 2, 3]


def test_concurrency_has_its_limit(stub: Stub) -> None:
    requests = [BenchRequest("x", 1, 4) for _ in range(9)]
    target = Target(Server(stub.url), "plain")
    records = asyncio.run(run_serving(target, requests, [0.0] * 9, max_concurrency=2))
    assert all(record.ok for record in records)
    assert _most_at_once(records) == 2
    assert max(record.sent_s for record in records) >= 3 * min(record.e2el_s for record in records), "waiting for room is off the clock"
    assert _most_at_once(asyncio.run(run_serving(target, requests, [0.0] * 9))) > 2


def _most_at_once(records: list[RequestRecord]) -> int:
    return max(sum(other.sent_s <= record.sent_s < other.last_s for other in records) for record in records)


def test_the_only_model(stub: Stub) -> None:
    assert asyncio.run(only_model(Server(stub.url))) == "plain"


def test_streams_that_a_long_prompt_disturbs(stub: Stub) -> None:
    streams = [BenchRequest("s", 1, 100_000)] * 3
    longs = [BenchRequest("l", 1, 1)] * 2
    target = Target(Server(stub.url), "stalls")
    first, second = asyncio.run(run_smooth(target, streams, longs, quiet_s=0.3))
    for found in (first, second):
        assert found.long_ttft_s >= 0.3
        assert min(found.without_s) > 0.5 * TOKEN_S
        assert median(found.during_s) > 2 * median(found.without_s)
        assert found.as_json()["p99_ratio"] == found.ratio > 1
    deadline = time.monotonic() + 5
    while stub.under_way and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stub.under_way == 0, "the streams are let go of"


def test_a_stream_that_ends_too_soon_is_said(stub: Stub) -> None:
    with pytest.raises(HTTPFault, match="a stream has ended before the measuring did: after 3 tokens"):
        asyncio.run(run_smooth(Target(Server(stub.url), "stalls"), [BenchRequest("s", 1, 3)], [BenchRequest("l", 1, 1)], quiet_s=0.3))


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://h:port", "http://h/v1?x=1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="--base-url"):
        Server(url)


def test_addresses() -> None:
    assert Server("http://h:1").path("/models") == "/v1/models"
    assert Server("http://h:1/").path("/models") == "/v1/models"
    assert Server("https://h/v3/").path("/models") == "/v3/models"
    assert (Server("https://h/v3").port, Server("http://h").port, Server("http://[::1]:5").host) == (443, 80, "::1")


data = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.lists(st.lists(data, min_size=1, max_size=3), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]), st.randoms())
def test_events_survive_any_cutting(events: list[list[str]], end: str, rng) -> None:  # type: ignore[no-untyped-def]
    text = "".join(
        "".join(f"data: {line}{end}" for line in lines) + rng.choice(["", f": note{end}", f"id: 7{end}"]) + end for lines in events
    )
    encoded = text.encode()
    cuts = sorted(rng.randrange(len(encoded) + 1) for _ in range(rng.randrange(8)))
    splitter, found = EventSplitter(), []
    for begin, stop in zip([0, *cuts], [*cuts, len(encoded)], strict=True):
        found += splitter.push(encoded[begin:stop])
    found += splitter.close()
    assert found == ["\n".join(lines).encode() for lines in events]
