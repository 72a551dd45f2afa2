"""Tokenising beside llama.cpp and transformers (golden files), and by its own properties on a small vocabulary."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text import Tokenizer, load_tokenizer
from octavo.weights import Checkpoint


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: Checkpoint) -> Tokenizer:
    return load_tokenizer(smollm2)


def small_tokenizer(metadata: dict[str, Any], **changes: Any) -> Tokenizer:
    updated = metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return Tokenizer({key: value for key, value in updated.items() if value is not None})


@pytest.mark.model
def test_encodes_as_llama_cpp(smollm2_tokenizer: Tokenizer, golden: Any) -> None:
    cases = golden("smollm2_tokens.json")["encode"]
    batch = smollm2_tokenizer.encode_batch([case["text"] for case in cases])
    for case, ids in zip(cases, batch, strict=True):
        assert ids == case["ids"], case["text"]
        assert smollm2_tokenizer.encode(case["text"]) == ids


@pytest.mark.model
def test_decodes_as_transformers(smollm2_tokenizer: Tokenizer, golden: Any) -> None:
    for case in golden("smollm2_tokens.json")["decode"]:
        assert smollm2_tokenizer.decode(case["ids"]) == case["skipping"], case["ids"]
        assert smollm2_tokenizer.decode(case["ids"], skip_special_tokens=False) == case["whole"], case["ids"]


@pytest.mark.model
def test_smollm2_special_tokens(smollm2_tokenizer: Tokenizer) -> None:
    assert smollm2_tokenizer.vocab_size == 49152
    assert (smollm2_tokenizer.bos_token_id, smollm2_tokenizer.eos_token_id, smollm2_tokenizer.pad_token_id) == (1, 2, 2)
    assert smollm2_tokenizer.eos_token_ids == {0, 2}
    assert smollm2_tokenizer.special_ids == set(range(17))
    assert smollm2_tokenizer.id_to_token(2) == "<|im_end|>"
    assert smollm2_tokenizer.token_bytes(smollm2_tokenizer.encode(" the")[0]) == b" the"


@pytest.mark.model
def test_construction_is_fast(smollm2: Checkpoint) -> None:
    def once() -> float:
        start = time.perf_counter()
        load_tokenizer(smollm2)
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.3


@pytest.mark.model
def test_encoding_lets_other_threads_run(smollm2_tokenizer: Tokenizer) -> None:
    text = "The capital of France is Paris. " * 40_000
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    smollm2_tokenizer.encode(text)
    end = time.perf_counter()
    stop.set()
    thread.join()
    meanwhile = [moment for moment in ticks if start < moment < end]
    assert len(meanwhile) > 0.05 * (end - start) / 0.001, "encode held the interpreter lock"


@given(text=st.text())
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match="lone surrogate"):
            tokenizer.encode(text)
        return
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


@given(ids=st.lists(st.integers(0, 269)), skip=st.booleans())
def test_decode_is_the_bytes_of_the_tokens(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    kept = [i for i in ids if not (skip and i in tokenizer.special_ids)]
    data = b"".join(tokenizer.token_bytes(i) for i in kept)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == data.decode("utf-8", "replace")


@given(ids=st.lists(st.integers(0, 265)))
def test_decode_agrees_with_the_library(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Up to the user-defined "é!": the library takes an added token's text for spelled bytes."""
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer._library.decode(ids, skip_special_tokens=False)


def test_token_bytes(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert tokenizer.token_bytes(258) == b" the"
    assert tokenizer.token_bytes(tokens.index("é!")) == "é!".encode()
    assert tokenizer.token_bytes(tokens.index("a b")) == b"a b"
    assert tokenizer.token_bytes(tokens.index("[PAD]")) == b"[PAD]"


def test_merges_and_added_tokens(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokenizer.encode("the the") == [257, 258]
    assert tokenizer.encode("xa b<think>é!") == [ord("x"), tokens.index("a b"), tokens.index("<think>"), tokens.index("é!")]
    assert tokenizer.encode("[PAD]") == list(b"[PAD]"), "unused tokens are not matched in text"


def test_ends_of_generation(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    tokens = metadata["tokenizer.ggml.tokens"]
    ends = {tokens.index("<|im_end|>"), tokens.index("<|endoftext|>")}
    assert tokenizer.eos_token_ids == ends, "<|endoftext|> ends a text although this file calls it a normal token"
    assert tokenizer.special_ids == ends | {tokens.index("<|start|>")}
    assert small_tokenizer(metadata, eot_token_id=65).eos_token_ids == ends | {65}
    without = small_tokenizer(metadata, eos_token_id=None, tokens=[*tokens[:-1], "</s>"], token_type=None)
    assert without.eos_token_ids == ends, "an ordinary </s> is text"
    assert without.eos_token_id is None


def test_beginning_and_end_of_sequence(metadata: dict[str, Any]) -> None:
    bos, eos = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    tokenizer = small_tokenizer(metadata, add_bos_token=True, add_eos_token=True)
    assert tokenizer.encode("the") == [bos, 257, eos]
    assert tokenizer.encode("the", add_special_tokens=False) == [257]
    assert tokenizer.encode_batch(["the", ""]) == [[bos, 257, eos], [bos, eos]]
    assert small_tokenizer(metadata).encode("the") == [257]


def test_pre_tokenizers_differ_in_digits(metadata: dict[str, Any]) -> None:
    digits = {"tokens": [*metadata["tokenizer.ggml.tokens"], "12"], "token_type": None, "merges": ["1 2"]}
    twelve = len(digits["tokens"]) - 1
    assert small_tokenizer(metadata, pre="smollm", **digits).encode("12") == [ord("1"), ord("2")]
    assert small_tokenizer(metadata, pre="gpt-2", **digits).encode("12") == [twelve]
    assert small_tokenizer(metadata, pre=None, **digits).encode("12") == [twelve]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, "tokenizer.ggml.model='rwkv' is not supported; supported are 'gpt2', 'llama', 't5', 'bert', 'gemma4'"),
        ({"model": None}, "tokenizer.ggml.model=None"),
        ({"pre": "?"}, r"tokenizer.ggml.pre='\?' is not supported; supported are default, falcon"),
        ({"pre": "llama-bpe2"}, "tokenizer.ggml.pre='llama-bpe2' is not supported; near it are llama-bpe"),
        ({"pre": []}, r"tokenizer.ggml.pre=\[\]"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is invalid"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges holds 'ab'"),
        ({"merges": ["a zz"]}, "tokenizer.ggml.merges do not fit"),
        ({"token_type": [1, 2]}, "tokenizer.ggml.token_type is invalid"),
        ({"token_type": ["1"] * 270}, "tokenizer.ggml.token_type is invalid"),
        ({"token_type": [9] * 270}, "tokenizer.ggml.token_type is invalid"),
        ({"eos_token_id": 270}, "tokenizer.ggml.eos_token_id=270 is invalid"),
        ({"bos_token_id": -1}, "tokenizer.ggml.bos_token_id=-1 is invalid"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token=1 is invalid"),
    ],
)
def test_refuses_by_name(metadata: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_tokenizer(metadata, **changes)


def test_refuses_ids_and_texts(tokenizer: Tokenizer) -> None:
    for wrong in (-1, tokenizer.vocab_size):
        for method in (tokenizer.id_to_token, tokenizer.token_bytes, lambda i: tokenizer.decode([i])):
            with pytest.raises(ValueError, match=f"token id {wrong} is invalid"):
                method(wrong)
    with pytest.raises(ValueError, match="must be a string, not int"):
        tokenizer.encode_batch(["a", 3])  # type: ignore[list-item]
    assert tokenizer.encode_batch([]) == []
