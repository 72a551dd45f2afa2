"""``octavo perplexity``: the library's figures, printed and in a file; what is no text is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from octavo import LLM

from .running import octavo

TINY = str(Path(__file__).parents[1] / "weights" / "data" / "tiny_llama")
TEXT = "a book is folded out of one sheet of paper – and another " * 20
ENGINE = ("--model", TINY, "--num-threads", "1", "--kv-cache-memory-bytes", "1MiB")


@pytest.mark.parametrize("from_stdin", [False, True])
def test_figures(tmp_path: Path, from_stdin: bool) -> None:
    (tmp_path / "text").write_text(TEXT)
    record = tmp_path / "record.json"
    file = "-" if from_stdin else str(tmp_path / "text")
    done = octavo("perplexity", file, *ENGINE, "--window", "64", "--stride", "32", "--json", str(record), input=TEXT)
    assert done.returncode == 0, done.stderr
    with LLM(TINY, num_threads=1, kv_cache_memory_bytes=1 << 20) as llm:
        expected = llm.perplexity(TEXT, window=64, stride=32)
    written = json.loads(record.read_text())
    for name in ("log_likelihood", "perplexity", "bits_per_byte", "num_tokens", "num_bytes", "num_windows", "window", "stride"):
        assert written[name] == getattr(expected, name)
    assert written["model"] == TINY
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.splitlines())
    assert float(rows["perplexity"].replace(",", "")) == pytest.approx(expected.perplexity, rel=1e-4)
    assert float(rows["bits per byte"]) == pytest.approx(expected.bits_per_byte, abs=1e-4)
    assert f"{expected.num_tokens:,} tokens, {expected.num_bytes:,} bytes" in rows["text"]


@pytest.mark.parametrize(
    ("data", "arguments", "says"),
    [
        (b"\xff\xfe", (), "UTF-8"),
        (b"", (), "too short"),
        (b"text", ("--window", "64", "--stride", "64"), "stride=64"),
        (b"text", ("--window", "100000"), "window=100000"),
        (None, (), "No such file"),
    ],
)
def test_what_cannot_be_measured(tmp_path: Path, data: bytes | None, arguments: tuple[str, ...], says: str) -> None:
    if data is not None:
        (tmp_path / "text").write_bytes(data)
    done = octavo("perplexity", str(tmp_path / "text"), *ENGINE, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
