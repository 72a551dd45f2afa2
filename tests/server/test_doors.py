"""What comes before a body, byte by byte: heads, lengths, encodings and chunks that are wrong, slow, huge or lie."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.server.run import default_max_connections

from .process import ServerProcess, running_server

BODY = b'{"prompt": "Hello", "max_tokens": 1}'
LONG_BODY = b'{"prompt": "Count on: one, two,", "max_tokens": 200, "ignore_eos": true, "stream": true}'


def head(*headers: str, path: str = "/v1/completions", method: str = "POST", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""]).encode("latin-1")


def request(body: bytes = BODY, *headers: str) -> bytes:
    return head("Content-Type: application/json", f"Content-Length: {len(body)}", *headers) + body


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def until_closed(connection: socket.socket) -> bytes:
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass  # it closed while we were still sending
    return data


def one_answer(connection: socket.socket) -> bytes:
    """A whole answer with a ``Content-Length``; the connection stays open."""
    data = b""
    while True:
        top, blank, body = data.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: (\d+)", top)
        if blank and found and len(body) >= int(found.group(1)):
            return data
        piece = connection.recv(65536)
        assert piece, data
        data += piece


def exchange(server: ServerProcess, *pieces: bytes, ends: bool = False) -> bytes:
    """All that comes back until the server closes. ``ends``: we say that no more will come."""
    with connect(server) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.02)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return until_closed(connection)


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def error_of(answer: bytes, status: int) -> dict[str, Any]:
    assert statuses(answer) == [status], answer
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in top.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400
    return error


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # somebody tries TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/comp letions HTTP/1.1\r\nHost: x\r\n\r\n",
        head("Content-Length: -1"),
        head("Content-Length: 1e3"),
        head("Content-Length: 99999999999999999999999999"),
        head("Content-Length: 5", "Content-Length: 6") + b"hello",
        head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
        head("No colon here"),
        head("Bad Name: x"),
        head(": empty"),
        head("X: a\x00b"),
        head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"nonsense\r\n",
        head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"-5\r\nhello\r\n",
        head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\nx",
        head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"3\r\nhello\r\n0\r\n\r\n",
        head(path="no-slash"),
        head(method="CONNECT", path="example.org:443"),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_what_is_not_http(server: ServerProcess, data: bytes) -> None:
    assert error_of(exchange(server, data), 400)["code"] == "invalid_http"


def test_bytes_beyond_ascii_in_a_path(server: ServerProcess) -> None:
    for path in ("/\xff", "/v1/models/%ff%fe", "/v1/models/\xe9", "/v1/models/%00"):
        (status,) = statuses(exchange(server, head("Connection: close", path=path, method="GET")))
        assert status in (400, 404)


@pytest.mark.parametrize(
    "data",
    [
        head("X-Huge: " + "x" * 100_000),
        head("x" * 100_000 + ": x"),
        head(*(f"X-{i}: {'x' * 100}" for i in range(1000))),
        head(path="/" + "x" * 100_000, method="GET"),
        head("Content-Type: application/json; x=" + "y" * 100_000, "Content-Length: 2") + b"{}",
    ],
    ids=["value", "name", "many", "path", "type"],
)
@pytest.mark.parametrize("pieces", [1, 7])
def test_huge_heads(server: ServerProcess, data: bytes, pieces: int) -> None:
    size = -(-len(data) // pieces)
    answer = exchange(server, *(data[at : at + size] for at in range(0, len(data), size)))
    assert error_of(answer, 431)["code"] == "headers_too_large"


def test_a_head_without_end_is_not_kept(server: ServerProcess) -> None:
    """Ten megabytes are never read."""
    answer = exchange(server, b"GET / HTTP/1.1\r\nX: ", *[b"x" * (1 << 20)] * 10)
    assert not answer or error_of(answer, 431)


def test_large_heads_that_are_allowed(server: ServerProcess) -> None:
    cookie = "Cookie: " + "x" * 30_000
    assert statuses(exchange(server, request(BODY, cookie, "Connection: close"))) == [200]
    data = request(BODY, cookie, "Connection: close")
    assert statuses(exchange(server, *(data[at : at + 5000] for at in range(0, len(data), 5000)))) == [200]


def test_a_body_shorter_than_its_length(server: ServerProcess) -> None:
    """The client that gives up has gone; nothing is left behind."""
    answer = exchange(server, head("Content-Type: application/json", f"Content-Length: {len(BODY) + 100}") + BODY, ends=True)
    assert statuses(answer) in ([], [499], [400])


@pytest.mark.parametrize("body", [BODY, LONG_BODY], ids=["whole", "streamed"])
@pytest.mark.parametrize("rest", [b"}", b"  more", b"\x00" * 5000, b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"], ids=repr)
def test_a_body_longer_than_its_length(server: ServerProcess, body: bytes, rest: bytes) -> None:
    """The request is answered in full; what follows is not a request and ends the connection, without a word into the answer."""
    answer = exchange(server, request(body) + rest)
    assert statuses(answer)[0] == 200
    assert len(statuses(answer)) == 1
    if body is LONG_BODY:
        assert b"data: [DONE]" in answer
        assert answer.endswith(b"0\r\n\r\n")
    else:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"]


def test_requests_behind_one_another(server: ServerProcess) -> None:
    """All that came before the nonsense is answered, in order."""
    version = head(path="/version", method="GET")
    answer = exchange(server, request(LONG_BODY) + version + request() + b"nonsense\r\n\r\n")
    assert statuses(answer) == [200, 200, 200]
    assert answer.index(b"[DONE]") < answer.index(b'"version"') < answer.index(b'"text_completion"', answer.index(b'"version"'))
    broken = head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"zzz\r\n"
    assert statuses(exchange(server, request(LONG_BODY) + version + broken)) == [200, 200]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunked_bodies(server: ServerProcess, chunk: int) -> None:
    pieces = [BODY[at : at + chunk] for at in range(0, len(BODY), chunk)]
    body = b"".join(b"%x;note=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Trailer: t\r\n\r\n"
    data = head("Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close") + body
    assert statuses(exchange(server, data)) == [200]
    assert statuses(exchange(server, *(data[at : at + 50] for at in range(0, len(data), 50)))) == [200]


def test_expect_continue(server: ServerProcess) -> None:
    """Asked for when the body is wanted, not when its length refuses it already."""
    expects = ("Content-Type: application/json", "Expect: 100-continue", "Connection: close")
    with connect(server) as connection:
        connection.sendall(head(*expects, f"Content-Length: {len(BODY)}"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert statuses(until_closed(connection)) == [200]
    answer = exchange(server, head(*expects, f"Content-Length: {33 << 20}"))
    assert error_of(answer, 413)["code"] == "body_too_large"
    text = ("Content-Type: text/plain", *expects[1:])
    assert error_of(exchange(server, head(*text, "Content-Length: 5")), 415)
    assert statuses(exchange(server, request(BODY, "Expect: miracles", "Connection: close"))) == [200]


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "nonsense"])
def test_offers_of_other_protocols_are_declined(server: ServerProcess, protocol: str) -> None:
    """By answering in this one, with and without a body, again and again."""
    upgrade = ("Connection: Upgrade", f"Upgrade: {protocol}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    get, post = head(*upgrade, path="/version", method="GET"), request(BODY, *upgrade)
    with connect(server) as connection:
        for data in (get, post, get, post):
            connection.sendall(data)
            assert statuses(one_answer(connection)) == [200]


def test_old_clients(server: ServerProcess) -> None:
    for version in ("1.0", "1.1"):
        assert statuses(exchange(server, head("Connection: close", path="/version", method="GET", version=version))) == [200]
    assert statuses(exchange(server, head("Connection: close", method="CONNECT", path="/v1/completions"))) == [405]


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Content-Type": "application/json; charset=latin-1"}, "utf-8"),
        ({"Content-Type": 'application/json;charset="utf-16"'}, "utf-8"),
        ({"Content-Type": "application/json; charset="}, "utf-8"),
        ({"Content-Type": "application/jsonp"}, "application/json"),
        ({"Content-Type": b"application/json\xff"}, "application/json"),
        ({"Content-Type": "x" * 10_000}, "application/json"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "gzip"),
        ({"Content-Type": "application/json", "Content-Encoding": "br, gzip"}, "br, gzip"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_bodies_in_other_encodings(server: ServerProcess, headers: dict[str, str], says: str) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        response = server.http.post(server.url + path, content=BODY, headers=headers)
        assert response.status_code == 415, response.text
        error = response.json()["error"]
        assert error["code"] == "unsupported_media_type"
        assert says in error["message"]
        assert len(error["message"]) < 300


@pytest.mark.parametrize("content_type", ["application/json;charset=UTF-8", 'application/json; Charset="utf-8"; x=y', "application/json;"])
def test_types_that_are_json(server: ServerProcess, content_type: str) -> None:
    headers = {"Content-Type": content_type, "Content-Encoding": "identity"}
    assert server.http.post(f"{server.url}/v1/completions", content=BODY, headers=headers).status_code == 200


def test_strange_headers_are_harmless(server: ServerProcess) -> None:
    for name in ("Accept", "Authorization", "Cookie", "Origin", "Range", "X-Request-Id", "User-Agent", "If-None-Match", "Forwarded"):
        for value in (b"", b"\xff\xfe", b"x" * 20_000, b"a\tb", b'"\\"'):
            headers = [(b"Content-Type", b"application/json"), (name.encode(), value)]
            response = server.http.post(f"{server.url}/tokenize", content=BODY.replace(b', "max_tokens": 1', b""), headers=headers)
            assert response.status_code == 200, (name, value)
            assert re.fullmatch(r"[\x21-\x7e]{1,128}", response.headers["x-request-id"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": 5, "prompt": "Hello", "max_tokens": 1}', 200),
        (b'{"prompt": "Hello", "prompt": 5, "max_tokens": 1}', 400),
        (b'{"prompt": "Hello", "max_tokens": 0, "max_tokens": 1}', 200),
        (b'{"prompt": "Hello", "max_tokens": 1, "max_tokens": 0}', 400),
        (b'{"prompt": "Hello", "max_tokens": 1, "stream_options": {"x": 1}, "stream_options": null}', 200),
    ],
)
def test_of_equal_keys_the_last_counts(server: ServerProcess, body: bytes, status: int) -> None:
    response = server.http.post(f"{server.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    if status == 400:
        assert response.json()["error"]["param"] in ("prompt", "max_tokens")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b'{"model": NaN}',
        b'{"model": -Infinity}',
        b'{"prompt": "\xc3\x28", "messages": "\xed\xa0\x80", "tokens": "\xf8"}',
        b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\udfff"}], "tokens": ["\\ud800"]}',
        b'{"prompt": "tab\there", "messages": [{"role": "user", "content": "a\x00b"}], "tokens": [01]}',
        b'{"chat_template_kwargs": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        b'{"tokens": ' + b"[" * 1_000_000,
        b'{"' + b"x" * 10_000_000 + b'": 1}',
        b"[" * 10_000_000,
        b'{"model": "' + b"\\" * 10_000_001 + b'"}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_bodies_that_are_no_json(server: ServerProcess, path: str, body: bytes) -> None:
    response = server.http.post(server.url + path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert len(response.json()["error"]["message"]) < 400


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"tokens": [' + b"1," * 5_000_000 + b"1]}",
        b'{"prompt": "x", "messages": [' + b"[]," * 5_000_000 + b"[]]}",
        b'{"chat_template_kwargs": {"a": [' + b"[[[[[]]]]]," * 1_000_000 + b"0]}}",
        b"{" + b",".join(b'"%x":1' % i for i in range(1_000_000)) + b"}",
        b'{"messages": [' + b'{"role":"user","content":"x"},' * 500_000 + b"{}]}",
    ],
    ids=["ids", "lists", "nested lists", "keys", "messages"],
)
def test_bodies_that_would_stop_the_streams(server: ServerProcess, path: str, body: bytes) -> None:
    """What takes seconds to parse is refused before it is."""
    response = server.http.post(server.url + path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "body_too_complex"


# -- what is slow -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    prelude = "import octavo.server.body as body, octavo.server.http as http\nbody.SILENCE_S = http.HEAD_S = 0.7\nbody.BODY_S = 3.0"
    with running_server(tmp_path_factory.mktemp("impatient") / "log", prelude=prelude) as server:
        yield server
        assert "Traceback" not in server.log, server.log


def test_a_body_that_stops(impatient: ServerProcess) -> None:
    promised = head("Content-Type: application/json", "Content-Length: 5000")
    for data in (promised, promised + BODY, head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"5\r\nab"):
        error = error_of(exchange(impatient, data), 408)
        assert error["code"] == "request_timeout"
    assert "5000" in error_of(exchange(impatient, promised + BODY), 408)["message"]


def test_a_body_that_is_slow_but_comes(impatient: ServerProcess) -> None:
    with connect(impatient) as connection:
        connection.sendall(head("Content-Type: application/json", f"Content-Length: {len(BODY)}", "Connection: close"))
        for at in range(0, len(BODY), 12):
            time.sleep(0.4)
            connection.sendall(BODY[at : at + 12])
        assert statuses(until_closed(connection)) == [200]


def test_a_body_that_drips_for_ever(impatient: ServerProcess) -> None:
    """It is never silent for long, but there is a limit to its time in all."""
    drops = (b" " for _ in range(100))
    with connect(impatient) as connection:
        began_s = time.monotonic()
        connection.sendall(head("Content-Type: application/json", "Content-Length: 5000"))
        connection.settimeout(0.2)
        answer = b""
        for drop in drops:
            connection.sendall(drop)
            try:
                answer = connection.recv(65536)
                break
            except TimeoutError:
                continue
        assert 2.5 < time.monotonic() - began_s < 10
        error = error_of(answer, 408)
        assert error["code"] == "request_timeout"
        assert "within 3 s" in error["message"]


def test_a_head_that_stops(impatient: ServerProcess) -> None:
    assert error_of(exchange(impatient, b"POST /v1/compl"), 408)["code"] == "request_timeout"
    assert exchange(impatient, b"") == b""
    version = head(path="/version", method="GET")
    assert statuses(exchange(impatient, version, b"GET /ver")) == [200, 408]


def test_an_idle_connection_is_kept(impatient: ServerProcess) -> None:
    with httpx.Client() as client:
        assert client.get(f"{impatient.url}/health").status_code == 200
        time.sleep(1.5)
        assert client.get(f"{impatient.url}/health").status_code == 200


# -- what is too much ---------------------------------------------------------------------------------------------------


def test_too_many_connections(smollm2_path: Path, tmp_path: Path) -> None:
    """Those that are there are served, the next ones told why not, a flood closed; whoever leaves makes room."""
    health = head(path="/health", method="GET")
    with running_server(tmp_path / "log", "--max-connections", "4") as server:
        server.http.close()
        held = [connect(server) for _ in range(4)]
        for connection in held:
            connection.sendall(health)
            assert statuses(one_answer(connection)) == [200]
        for data in (health, request()):
            answer = exchange(server, data)
            assert statuses(answer) == [503]
            assert b"retry-after: 1\r\n" in answer.lower()
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        surplus = [connect(server) for _ in range(32)]
        assert exchange(server, health) == b""
        for connection in held:
            connection.sendall(request())
            assert statuses(one_answer(connection)) == [200]
        for connection in (*surplus, *held[1:]):
            connection.close()
        held[0].sendall(health)
        assert statuses(one_answer(held[0])) == [200]
        assert statuses(exchange(server, request(BODY, "Connection: close"))) == [200]
        held[0].close()
        assert "Traceback" not in server.log, server.log


def test_the_limit_of_connections_leaves_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((1024, 896), (100, 1), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert default_max_connections() == most
