"""A small tokenizer with every byte, pieces of characters, control and user-defined tokens; and the golden files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.text import Tokenizer

GPT2_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
GPT2_BYTES += [byte for byte in range(256) if byte not in GPT2_BYTES]
SPELLING = {byte: chr(byte) if i < 188 else chr(256 + i - 188) for i, byte in enumerate(GPT2_BYTES)}


def spell(data: bytes) -> str:
    return "".join(SPELLING[byte] for byte in data)


def small_metadata() -> dict[str, Any]:
    """Ids 0-255 are the bytes; then merged pieces (of 👩, é and "the"), then control, user-defined and unused tokens."""
    pairs = [
        (b"t", b"h"),
        (b"th", b"e"),
        (b" ", b"the"),
        (b"\xf0", b"\x9f"),
        (b"\xf0\x9f", b"\x91"),
        (b"\x91", b"\xa9"),
        (b"\xc3", b"\xa9"),
    ]
    tokens = [spell(bytes([byte])) for byte in range(256)] + [spell(a + b) for a, b in pairs]
    types = [1] * len(tokens)
    tokens += ["<|start|>", "<|im_end|>", "<|endoftext|>", "<think>", "é!", "a b", "[PAD]"]
    types += [3, 3, 1, 4, 4, 4, 5]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{spell(a)} {spell(b)}" for a, b in pairs],
        "tokenizer.ggml.bos_token_id": tokens.index("<|start|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
    }


@pytest.fixture
def metadata() -> dict[str, Any]:
    return small_metadata()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(small_metadata())


def read_golden(name: str) -> Any:
    return json.loads((Path(__file__).parent / "golden" / name).read_text())


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    return read_golden
