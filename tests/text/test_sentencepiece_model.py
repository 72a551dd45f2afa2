"""``tokenizer.model`` files beside the ``sentencepiece`` package that wrote them, and files that are none."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.text.conftest import read_golden

from octavo.text import IncrementalDetokenizer, Tokenizer, load_hf_tokenizer
from octavo.text.sentencepiece_model import metadata_from_model

TEXTS = [text for text in read_golden("byte_level.json")["texts"] if "<s>" not in text]
HARD = st.lists(st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=20)), max_size=4).map("".join)
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "remove_extra_whitespaces": False},
    "gemma": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "baichuan": {"model_type": "bpe", "remove_extra_whitespaces": True},
    "t5": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "albert": {"model_type": "unigram", "normalization_rule_name": "nfkc_cf", "byte_fallback": True},
    "phrases": {"model_type": "unigram", "split_by_whitespace": False, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
}


def trained(**options: Any) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = [text.replace("\0", "") for text in TEXTS if text.strip() and len(text) < 200] * 5
    model = io.BytesIO()
    defaults = {"normalization_rule_name": "identity", "vocab_size": 600, "hard_vocab_limit": False, "character_coverage": 0.98}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, num_threads=1, minloglevel=2, **defaults | options
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Tokenizer]]:
    known: dict[str, tuple[Any, Tokenizer]] = {}

    def get(name: str) -> tuple[Any, Tokenizer]:
        if name not in known:
            original = trained(**KINDS[name])
            directory = tmp_path_factory.mktemp(name)
            (directory / "tokenizer.model").write_bytes(original.serialized_model_proto())
            known[name] = original, load_hf_tokenizer(directory)
        return known[name]

    return get


@pytest.mark.parametrize("name", KINDS)
@given(text=HARD)
@example(text="▁")
@example(text="a ▁ ▁")
@example(text=" ▁ a▁b")
@example(text="▁▁a  ▁ b ")
def test_encodes_as_sentencepiece(build: Callable[[str], Any], name: str, text: str) -> None:
    original, tokenizer = build(name)
    if "\0" in text and "normalization_rule_name" in KINDS[name]:
        return  # its map of characters ends at a zero byte, and the library's goes on
    for token in ("<s>", "</s>", "<unk>", "<pad>"):
        text = text.replace(token, "")
    ours, theirs = tokenizer.encode(text, add_special_tokens=False), original.encode(text)
    if ours != theirs and KINDS[name]["model_type"] == "unigram":
        # Several ways to cut a long repetition are equally probable, up to rounding.
        assert sum(map(original.get_score, ours)) == pytest.approx(sum(map(original.get_score, theirs)), rel=1e-5)
        assert tokenizer.decode(ours) == tokenizer.decode(theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", KINDS)
@given(text=HARD)
def test_decodes_as_sentencepiece(build: Callable[[str], Any], name: str, text: str) -> None:
    original, tokenizer = build(name)
    if KINDS[name].get("remove_extra_whitespaces", True):
        text = text.replace("▁", " ")  # of several at the start, which its normalizer never leaves, sentencepiece drops all
    ids = original.encode(text)
    if original.unk_id() in ids:
        return  # for which sentencepiece writes " ⁇ "
    assert tokenizer.decode(ids) == original.decode(ids)
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush() == tokenizer.decode(ids)


def test_special_tokens(build: Callable[[str], Any], tmp_path: Path) -> None:
    original, tokenizer = build("llama")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, None)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.encode("a")[0] == 1
    t5 = build("t5")[1]
    assert (t5.bos_token_id, t5.eos_token_id, t5.pad_token_id) == (None, 1, 0)
    assert t5.encode("a")[-1] == 1
    (tmp_path / "tokenizer.model").write_bytes(original.serialized_model_proto())
    size = original.vocab_size()
    added = {str(size): {"content": "<|im_start|>", "special": True}, str(size + 2): {"content": "<tool>", "special": False}}
    config = {"added_tokens_decoder": added, "eos_token": "</s>", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, size]}))
    extended = load_hf_tokenizer(tmp_path)
    assert extended.vocab_size == size + 3
    assert extended.encode("<|im_start|><tool>") == [size, size + 2]
    assert extended.eos_token_ids == {2, size}
    assert extended.decode([size, size + 1, size + 2]) == "<tool>"


@given(data=st.binary(max_size=40))
def test_other_bytes(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        metadata_from_model(data)


@given(data=st.data())
def test_broken_files_are_refused(build: Callable[[str], Any], data: st.DataObject) -> None:
    proto = bytearray(build("llama")[0].serialized_model_proto())
    for _ in range(data.draw(st.integers(1, 3))):
        proto[data.draw(st.integers(0, len(proto) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(proto)))
    with contextlib.suppress(ValueError):
        Tokenizer(metadata_from_model(bytes(proto[:length])))


def test_refuses_by_name(build: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\x01")
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model: a field of 255 bytes"):
        load_hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x12\x02\x18\x03")
    with pytest.raises(ValueError, match=r"tokenizer\.model: model_type=3 is not supported"):
        load_hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(build("llama")[0].serialized_model_proto())
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"99999999": {"content": "x"}}}')
    with pytest.raises(ValueError, match="the token 'x' has the id 99999999"):
        load_hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"1": {}}}')
    with pytest.raises(ValueError, match="added_tokens_decoder holds '1'"):
        load_hf_tokenizer(tmp_path)
