"""Filling in the middle: whose tokens are found, and what the prompt looks like."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.text import Tokenizer
from octavo.text.infill import find_fim_tokens

FAMILIES = {
    "Qwen": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
    "StarCoder, Granite": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"],
    "SantaCoder": ["<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<fim-pad>"],
    "DeepSeek": ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    "Code Llama": ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"],
    "CodeGemma": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_known_by_their_spelling(family: str) -> None:
    spellings = FAMILIES[family]
    found = find_fim_tokens({"a": 0, **{text: 10 + i for i, text in enumerate(spellings)}})
    assert found is not None
    assert (found.prefix, found.suffix, found.middle) == (10, 11, 12)
    assert found.ends == {10 + i for i in range(len(spellings))}
    assert found.arrange([1, 2], [3]) == [10, 1, 2, 11, 3, 12]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_all_three_are_needed(missing: int) -> None:
    texts = [text for i, text in enumerate(FAMILIES["Qwen"]) if i != missing]
    assert find_fim_tokens({text: i for i, text in enumerate(texts)}) is None


@pytest.mark.parametrize("keys", [("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle")])
def test_gguf_files_name_them_by_role(metadata: dict[str, Any], keys: tuple[str, str, str]) -> None:
    tokens = metadata["tokenizer.ggml.tokens"]
    names = ["<|start|>", "<think>", "é!"]
    metadata |= {f"tokenizer.ggml.{key}_token_id": tokens.index(name) for key, name in zip(keys, names, strict=True)}
    metadata["tokenizer.ggml.add_bos_token"] = True
    tokenizer = Tokenizer(metadata)
    before, after = tokenizer.encode("the", add_special_tokens=False), tokenizer.encode("th", add_special_tokens=False)
    prefix, suffix, middle = (tokens.index(name) for name in names)
    assert tokenizer.infill(before, after) == [tokenizer.bos_token_id, prefix, *before, suffix, *after, middle]
    assert tokenizer.infill(before, after, add_special_tokens=False) == [prefix, *before, suffix, *after, middle]


def test_a_model_that_cannot(tokenizer: Tokenizer) -> None:
    assert tokenizer.fim is None
    with pytest.raises(ValueError, match="no tokens for filling in the middle"):
        tokenizer.infill([1], [2])
