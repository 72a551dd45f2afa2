"""Every family of tokenizers beside its original, on hard texts, with small vocabularies (golden files).

``scripts/make_tokenizer_golden.py`` made them: ids of byte-level BPE come from llama.cpp, of SentencePiece from ``sentencepiece``, of
WordPiece from ``tokenizers``.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.text.conftest import SPELLING, read_golden

from octavo.text import IncrementalDetokenizer, Tokenizer
from octavo.text.pretokenizers import PRE_TOKENIZERS

BYTE_LEVEL = read_golden("byte_level.json")
CASES = {case["name"]: case for name in ("sentencepiece.json", "wordpiece.json") for case in read_golden(name)}
TEXTS = st.lists(st.one_of(st.sampled_from(BYTE_LEVEL["texts"]), st.text(st.characters(exclude_categories=["Cs"]))), max_size=4).map(
    "".join
)


def byte_level_metadata(pre: str) -> dict[str, Any]:
    merges = BYTE_LEVEL["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [SPELLING[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }


def case_metadata(name: str) -> dict[str, Any]:
    metadata = dict(CASES[name]["metadata"])
    charsmap = base64.b64decode(metadata.pop("tokenizer.ggml.precompiled_charsmap", ""))
    return metadata | ({"tokenizer.ggml.precompiled_charsmap": list(charsmap)} if charsmap else {})


@pytest.fixture(scope="module")
def build() -> Callable[[str], Tokenizer]:
    known: dict[str, Tokenizer] = {}

    def get(name: str) -> Tokenizer:
        if name not in known:
            known[name] = Tokenizer(case_metadata(name) if name in CASES else byte_level_metadata(name))
        return known[name]

    return get


@pytest.mark.parametrize("expected", BYTE_LEVEL["expected"], ids=lambda expected: expected["pre"][0])
def test_byte_level_as_llama_cpp(expected: dict[str, Any]) -> None:
    """Texts in which llama.cpp only approximates a model's pattern have no expected ids."""
    for pre in expected["pre"]:
        tokenizer = Tokenizer(byte_level_metadata(pre))
        for text, ids in zip(BYTE_LEVEL["texts"], expected["ids"], strict=True):
            if ids is not None:
                assert tokenizer.encode(text) == ids, (pre, text)


def test_every_name_has_been_compared() -> None:
    compared = {name for expected in BYTE_LEVEL["expected"] for name in expected["pre"]}
    others = {"gpt2", "gemma4", "granite-embed-multi-311m", "sarvam-moe"}
    assert compared | others == PRE_TOKENIZERS.keys()


@pytest.mark.parametrize("name", CASES)
def test_encodes_as_the_original(build: Callable[[str], Tokenizer], name: str) -> None:
    for case in CASES[name]["encode"]:
        if "<s>" not in case["text"]:  # the originals take no special tokens out of text
            assert build(name).encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]


@pytest.mark.parametrize("name", CASES)
def test_decodes_as_the_original(build: Callable[[str], Tokenizer], name: str) -> None:
    assert len(CASES[name]["decode"]) > 20
    for case in CASES[name]["decode"]:
        assert build(name).decode(case["ids"]) == case["text"], case["ids"]


@pytest.mark.parametrize("name", ["llama", "gemma", "qwen2", "deepseek-v3", "llama-bpe", "tekken"])
@given(text=TEXTS)
def test_every_text_comes_back(build: Callable[[str], Tokenizer], name: str, text: str) -> None:
    if name == "qwen2":
        text = unicodedata.normalize("NFC", text)
    if name in ("llama", "gemma"):
        for token in ("<s>", "</s>", "<unk>"):  # after which a new text begins, with a space of its own
            text = text.replace(token, "")
    expected = text.replace("▁", " ") if name in ("llama", "gemma") else text
    tokenizer = build(name)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False) == expected


@pytest.mark.parametrize("name", [*CASES, "qwen2"])
@given(data=st.data(), skip=st.booleans())
def test_streamed_text_is_the_whole_text(build: Callable[[str], Tokenizer], name: str, data: st.DataObject, skip: bool) -> None:
    tokenizer = build(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    for _ in range(2):
        pieces = [detokenizer.push(i) for i in ids]
        assert "".join(pieces) + detokenizer.flush() == whole
    split = data.draw(st.integers(0, len(ids)))
    before = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    shown = "".join([before.push(i) for i in ids[:split]])
    continued = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip, after=ids[:split])
    pieces = [continued.push(i) for i in ids[split:]]
    assert shown + "".join(pieces) + continued.flush() == whole


@pytest.mark.parametrize("name", [*CASES, "qwen2"])
@given(data=st.data())
def test_decode_agrees_with_the_library(build: Callable[[str], Tokenizer], name: str, data: st.DataObject) -> None:
    """Where bytes make characters: the library gives up on all neighbouring byte tokens when one is not valid."""
    tokenizer = build(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    theirs = tokenizer._library.decode(ids, skip_special_tokens=False)
    ours = tokenizer.decode(ids, skip_special_tokens=False)
    if "\ufffd" not in theirs:
        assert ours == theirs
    assert ("\ufffd" in ours) == ("\ufffd" in theirs)


def test_spaces_at_the_start(build: Callable[[str], Tokenizer]) -> None:
    llama = build("llama")
    ids = llama.encode("the cat", add_special_tokens=False)
    assert llama.token_bytes(ids[0]).startswith(b" ")
    assert not llama.first_token_bytes(ids[0]).startswith(b" ")
    assert llama.decode(ids) == "the cat"
    assert IncrementalDetokenizer(llama, after=llama.encode("on a")).push(ids[0]) == llama.token_bytes(ids[0]).decode()
    assert IncrementalDetokenizer(llama, after=[llama.bos_token_id]).push(ids[0]) == llama.first_token_bytes(ids[0]).decode(), (
        "a skipped token begins no text"
    )


def test_special_tokens_of_each_family(build: Callable[[str], Tokenizer]) -> None:
    llama, t5, bert = build("llama"), build("t5"), build("uncased")
    assert llama.encode("")[:1] == [llama.bos_token_id]
    assert llama.encode("</s>", add_special_tokens=False) == [llama.eos_token_id]
    assert t5.encode("the")[-1] == t5.eos_token_id
    assert bert.encode("the")[0] == bert.bos_token_id == 2
    assert bert.encode("the")[-1] == 3
    assert bert.encode("a [MASK] b", add_special_tokens=False)[1] == 4
    assert {llama.bos_token_id, llama.eos_token_id, 0} <= llama.special_ids


def test_a_token_after_a_special_one_gets_its_own_space(build: Callable[[str], Tokenizer]) -> None:
    """As in llama.cpp and transformers' legacy mode: each stretch between special tokens is a text of its own."""
    llama = build("llama")
    the = llama.encode("the", add_special_tokens=False)
    assert llama.encode("the</s>the", add_special_tokens=False) == [*the, llama.eos_token_id, *the]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"scores": None}, "tokenizer.ggml.scores is missing"),
        ("llama", {"scores": [1.0]}, "tokenizer.ggml.scores is invalid"),
        ("llama", {"precompiled_charsmap": ["x"]}, "tokenizer.ggml.precompiled_charsmap is invalid: a list of bytes"),
        ("t5", {"precompiled_charsmap": [1, 2]}, "tokenizer.ggml.precompiled_charsmap is invalid: 2 bytes are too few"),
        ("t5", {"precompiled_charsmap": [255] * 12}, "tokenizer.ggml.precompiled_charsmap is invalid: it claims an array"),
        (
            "t5",
            {"precompiled_charsmap": [4, 0, 0, 0, 0, 4, 0, 0, 0]},
            "tokenizer.ggml.precompiled_charsmap is invalid: its array of 1 units",
        ),
        ("t5", {"unknown_token_id": 99999}, "tokenizer.ggml.unknown_token_id=99999 is invalid"),
        ("uncased", {"tokens": ["a"], "token_type": None, "unknown_token_id": None}, "tokenizer.ggml.unknown_token_id is missing"),
        ("uncased", {"normalizer.lowercase": "yes"}, "tokenizer.ggml.normalizer.lowercase='yes' is invalid"),
    ],
)
def test_refuses_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    metadata = case_metadata(name) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        Tokenizer({key: value for key, value in metadata.items() if value is not None})


@given(data=st.data())
def test_broken_charsmaps_are_refused_or_harmless(data: st.DataObject) -> None:
    """A panic in the library would not be an ``Exception``."""
    metadata = case_metadata("t5")
    charsmap = list(metadata["tokenizer.ggml.precompiled_charsmap"])
    for _ in range(data.draw(st.integers(1, 4))):
        charsmap[data.draw(st.integers(0, len(charsmap) - 1))] = data.draw(st.integers(0, 255))
    charsmap = charsmap[: data.draw(st.integers(len(charsmap) - 8, len(charsmap)))]
    try:
        tokenizer = Tokenizer(metadata | {"tokenizer.ggml.precompiled_charsmap": charsmap})
    except ValueError:
        return
    tokenizer.encode("".join(case["text"] for case in CASES["t5"]["encode"]))
