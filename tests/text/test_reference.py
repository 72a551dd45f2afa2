"""The tokenizer and the chat template beside transformers itself, on texts that nobody wrote down beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.test_hf_tokenizer import FAMILIES
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from octavo.text import ChatTemplate, Tokenizer, load_chat_template, load_hf_chat_template, load_hf_tokenizer, load_tokenizer
from octavo.weights import Checkpoint

pytestmark = pytest.mark.reference

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


@pytest.mark.model
@settings(max_examples=1000)
@given(text=TEXTS)
def test_encode(reference: Any, tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids


@pytest.mark.model
@settings(max_examples=500)
@given(ids=st.lists(st.integers(0, 49151)), skip=st.booleans())
def test_decode(reference: Any, tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    theirs = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs


@pytest.mark.model
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Directories as ``save_pretrained`` writes them, and the tokenizers that ``AutoTokenizer`` makes of them."""
    transformers = pytest.importorskip("transformers")
    known: dict[str, tuple[Any, Path]] = {}

    def get(name: str) -> tuple[Any, Path]:
        if name not in known:
            directory = tmp_path_factory.mktemp(name)
            special = {"bert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}}
            roles = special.get(name, {"eos_token": "</s>"} if name != "words" else {})
            original = transformers.PreTrainedTokenizerFast(tokenizer_object=FAMILIES[name](), **roles)
            original.chat_template = {"default": "{{ messages[0].content }}{{ eos_token }}", "tool_use": "{{ tools | tojson }}"}
            original.save_pretrained(directory)
            known[name] = transformers.AutoTokenizer.from_pretrained(directory), directory
        return known[name]

    return get


@pytest.mark.parametrize("name", FAMILIES)
@given(text=TEXTS, add=st.booleans())
def test_directories(saved: Any, name: str, text: str, add: bool) -> None:
    reference, directory = saved(name)
    tokenizer = _tokenizer_of(directory)
    ids = tokenizer.encode(text, add_special_tokens=add)
    assert ids == reference(text, add_special_tokens=add).input_ids
    theirs = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if "\ufffd" not in theirs:
        assert tokenizer.decode(ids) == theirs
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (
        reference.eos_token_id,
        reference.bos_token_id,
        reference.pad_token_id,
    )


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f", "parameters": {}}}]])
def test_named_templates(saved: Any, tools: Any) -> None:
    reference, directory = saved("llama")
    template = load_hf_chat_template(directory)
    assert template is not None
    messages = [{"role": "user", "content": "Hi"}]
    assert template.render(messages, tools=tools) == reference.apply_chat_template(messages, tools=tools, tokenize=False)


_loaded: dict[Path, Tokenizer] = {}


def _tokenizer_of(directory: Path) -> Tokenizer:
    if directory not in _loaded:
        _loaded[directory] = load_hf_tokenizer(directory)
    return _loaded[directory]
