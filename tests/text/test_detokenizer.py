"""Incremental detokenising equals decoding at once, whatever the bytes, and never shows half a character."""

from __future__ import annotations

import codecs
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text import IncrementalDetokenizer, Tokenizer, load_tokenizer
from octavo.weights import Checkpoint

EVIL_BYTES = [0x00, 0x41, 0x7F, 0x80, 0x9F, 0xA0, 0xBF, 0xC0, 0xC3, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF]
IDS = st.lists(st.one_of(st.sampled_from(EVIL_BYTES), st.integers(0, 269)), max_size=40)


@given(ids=IDS, skip=st.booleans())
def test_pushes_and_flush_give_the_whole(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    pieces = [detokenizer.push(i) for i in ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens=skip)
    assert detokenizer.flush() == "", "nothing is left after a flush"


@given(ids=IDS, skip=st.booleans(), cuts=st.sets(st.integers(0, 40)))
def test_many_at_once_are_pushed_like_one_after_the_other(tokenizer: Tokenizer, ids: list[int], skip: bool, cuts: set[int]) -> None:
    alone, together = (IncrementalDetokenizer(tokenizer, skip_special_tokens=skip) for _ in range(2))
    bounds = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    for begin, end in itertools.pairwise(bounds):
        assert together.push_all(ids[begin:end]) == "".join([alone.push(i) for i in ids[begin:end]])
    assert together.flush() == alone.flush()


@given(ids=IDS)
def test_holds_back_an_incomplete_character_and_nothing_more(tokenizer: Tokenizer, ids: list[int]) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
    emitted = ""
    for count, token_id in enumerate(ids, 1):
        emitted += detokenizer.push(token_id)
        data = b"".join(tokenizer.token_bytes(i) for i in ids[:count])
        # What every continuation would leave as it is: the longest certain text.
        endings = [
            (data + tail).decode("utf-8", "replace")
            for tail in (b"", b"A", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xbf\xbf\xbf", b"\x90\x90")
        ]
        assert all(text.startswith(emitted) for text in endings), "nothing uncertain is shown"
        held = len(data) - _bytes_shown(data, emitted)
        assert held <= 3
        if held:
            assert _is_prefix_of_a_character(data[len(data) - held :])


def _bytes_shown(data: bytes, emitted: str) -> int:
    """The shortest prefix of ``data`` that decodes to ``emitted``, or the longest if several do."""
    return max(end for end in range(len(data) + 1) if data[:end].decode("utf-8", "replace") == emitted)


def _is_prefix_of_a_character(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    return decoder.decode(data) == ""


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_valid_text_never_shows_a_replacement(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
    pieces = [detokenizer.push(i) for i in tokenizer.encode(text)]
    assert "".join(pieces) == text, "a whole text needs no flush"
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


def test_an_unfinished_character_is_flushed_as_a_replacement(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.push(i) for i in b"\xf0\x9f\x91"] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert [detokenizer.push(i) for i in "é".encode()] == ["", "é"]


def test_refuses_an_id_outside_the_vocabulary(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="token id 9999 is invalid"):
        IncrementalDetokenizer(tokenizer).push(9999)


@pytest.mark.model
@given(ids=st.lists(st.integers(0, 49151), max_size=60))
def test_smollm2(smollm2: Checkpoint, ids: list[int]) -> None:
    tokenizer = _smollm2_tokenizer(smollm2)
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush() == tokenizer.decode(ids)


_loaded: list[Tokenizer] = []


def _smollm2_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if not _loaded:
        _loaded.append(load_tokenizer(checkpoint))
    return _loaded[0]
