"""Pre-tokenizers beside the ``regex`` package: the same patterns, another engine, pieces cut by a few lines of Python."""

from __future__ import annotations

import time
import unicodedata
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.text.conftest import read_golden, spell

from octavo.text.pretokenizers import PRE_TOKENIZERS, PreTokenization

KINDS = {kind: name for name, kind in reversed(PRE_TOKENIZERS.items())}
WORDS = st.sampled_from(
    [
        *(
            "don't",
            "I'LL",
            "'ſ",
            "'S",
            "wOrd",
            "HTTPServer",
            " the",
            "12345",
            " 7",
            "١٢٣",
            "½",
            "Ⅷ",
            "e\u0301",
            "नमस्ते",
            "你好",
            "ひら",
            "カ",
            "한국",
        ),
        *(
            "ㄱ",
            "ㄅ",
            "\n",
            "\r\n",
            "  ",
            "\t",
            "\xa0",
            "\u2003",
            "\u3000",
            "\x85",
            "...",
            " //\n",
            "—",
            "，",
            "。",
            "🦙",
            "👩\u200d👧",
            "ǅ",
            "ʰ",
        ),
        *("<sentinel:12>", "IMGIMGABZ"),
    ]
)
# What Unicode has assigned for a long time: engines know different versions of it.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0x2FFF)
TEXTS = st.lists(st.one_of(WORDS, st.text(CHARACTERS, max_size=4)), max_size=8).map("".join)


@cache
def compiled(pattern: str) -> Any:
    regex = pytest.importorskip("regex")
    return regex.compile(pattern, regex.V1)  # version 1 knows intersections of sets


ORIGINAL_GROUPS = {
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "tiny_aya": (r"\d{1,3}(?=(?:\d{3})*(?![\p{L}\p{M}\p{N}\p{Pc}]))", *PRE_TOKENIZERS["gpt-4o"].patterns),
    "afmoe": (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", *PRE_TOKENIZERS["afmoe"].patterns[1:]),
}
"""What the models' own files say, in time that grows with the square of the number of digits (``\\b`` for the set: engines differ)."""


def pieces_of(text: str, kind: PreTokenization) -> list[str]:
    pieces = [text]
    for pattern in ORIGINAL_GROUPS.get(KINDS[kind], kind.patterns):
        cut = []
        for piece in pieces:
            position = 0
            for match in compiled(pattern).finditer(piece):
                cut += [piece[position : match.start()], match[0]]
                position = match.end()
            cut.append(piece[position:])
        pieces = [piece for piece in cut if piece]
    return pieces


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
@given(text=TEXTS)
def test_as_regex(kind: PreTokenization, text: str) -> None:
    ours = [piece for piece, _ in kind.pre_tokenizer().pre_tokenize_str(text)]
    theirs = pieces_of(text, kind)
    assert ours == [spell(piece.encode()) if kind.byte_level else piece for piece in theirs]


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
def test_hard_texts(kind: PreTokenization) -> None:
    for text in read_golden("byte_level.json")["texts"]:
        ours = [piece for piece, _ in kind.pre_tokenizer().pre_tokenize_str(text)]
        assert ours == [spell(piece.encode()) if kind.byte_level else piece for piece in pieces_of(text, kind)], text


@pytest.mark.parametrize("name", ORIGINAL_GROUPS)
@given(text=st.text(st.sampled_from("0123456٣²Ⅷ½a_é .\n"), max_size=30))
def test_groups_of_digits(name: str, text: str) -> None:
    kind = PRE_TOKENIZERS[name]
    ours = [piece for piece, _ in kind.pre_tokenizer().pre_tokenize_str(text)]
    assert ours == [spell(piece.encode()) for piece in pieces_of(text, kind)]


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
def test_time_grows_with_length_alone(kind: PreTokenization) -> None:
    pre_tokenizer = kind.pre_tokenizer()
    start = time.perf_counter()
    for text in ("7", " ", "a", "\n", "1a", "!", "  x", "é\u0301", "你"):
        pre_tokenizer.pre_tokenize_str(text * (50_000 // len(text)))
    assert time.perf_counter() - start < 8, "50,000 characters of each, which take about a tenth of a second"


def test_what_is_composed() -> None:
    composed = {name for name, kind in PRE_TOKENIZERS.items() if kind.nfc}
    assert composed == {"qwen2", "megrez", "qwen35", "command-r", "mpt", "olmo", "modern-bert"}
    assert unicodedata.normalize("NFC", "e\u0301") == "é"


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "don't 123", ["don", "'t", " 123"]),
        ("smollm", " 12", [" ", "1", "2"]),
        ("llama-bpe", "I'M 1234!\n\nOK", ["I", "'M", " ", "123", "4", "!\n\n", "OK"]),
        ("qwen2", "12\n x", ["1", "2", "\n", " x"]),
        ("deepseek-v3", "你好ab", ["你好", "ab"]),
        ("deepseek-coder", "x = 10", ["x", " = ", "1", "0"]),
        ("falcon", "a1234", ["a", "123", "4"]),
        ("tekken", "camelCase's", ["camel", "Case", "'s"]),
        ("gpt-4o", "camelCase's", ["camel", "Case's"]),
        ("superbpe", "a b 1234567", ["a b ", "1", "234", "567"]),
        ("afmoe", "1234567", ["1", "234", "567"]),
        ("kimi-k2", "ab你好", ["ab", "你好"]),
        ("bloom", "a, b", ["a", ",", " b"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
    ],
)
def test_examples(name: str, text: str, pieces: list[str]) -> None:
    kind = PRE_TOKENIZERS[name]
    ours = [piece for piece, _ in kind.pre_tokenizer().pre_tokenize_str(text)]
    assert ours == [spell(piece.encode()) if kind.byte_level else piece for piece in pieces]
