"""The tokenizer and the chat template beside transformers itself, on texts that nobody wrote down beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from octavo.text import ChatTemplate, Tokenizer, load_chat_template, load_tokenizer
from octavo.weights import Checkpoint

pytestmark = [pytest.mark.reference, pytest.mark.model]

WORDS = st.sampled_from(
    ["the", " the", "don't", "<|im_end|>", "<file_sep>", "\n\n", "  ", "é", "你好", "👩‍👩‍👧", "مرحبا", "2", "１", "²", "\x04", "\x06"]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=8).map("".join)


@pytest.fixture(scope="module")
def reference(smollm2_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    # Its GGUF conversion takes every byte-level model for GPT-2, which does not split digits; the original tokenizer does.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Tokenizer:
    return load_tokenizer(smollm2)


@settings(max_examples=1000)
@given(text=TEXTS)
def test_encode(reference: Any, tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids


@settings(max_examples=500)
@given(ids=st.lists(st.integers(0, 49151)), skip=st.booleans())
def test_decode(reference: Any, tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    theirs = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs


@given(
    messages=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}), min_size=1, max_size=4
    ),
    add=st.booleans(),
)
def test_chat_template(reference: Any, smollm2: Checkpoint, messages: list[dict[str, str]], add: bool) -> None:
    template = load_chat_template(smollm2)
    assert isinstance(template, ChatTemplate)
    theirs = reference.apply_chat_template(messages, add_generation_prompt=add, tokenize=False)
    assert template.render(messages, add_generation_prompt=add) == theirs
