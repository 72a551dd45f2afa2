"""The ways in which byte-level BPE models cut text into words before merging, by their name in GGUF files.

``tokenizer.ggml.pre`` names one of them. A wrong choice gives plausible but different tokens, so an unknown name is
refused rather than guessed. To support another, add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence

PreTokenizerFactory = Callable[[bool], PreTokenizer]
"""From "put a space before the text's first word" to the pre-tokenizer."""


def _gpt2(add_space_prefix: bool) -> PreTokenizer:
    return ByteLevel(add_prefix_space=add_space_prefix, use_regex=True)


def _smollm(add_space_prefix: bool) -> PreTokenizer:
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=add_space_prefix, use_regex=True)])


PRE_TOKENIZERS: Mapping[str, PreTokenizerFactory] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "gpt2": _gpt2,
    "smollm": _smollm,
}


def pre_tokenizer(name: object, *, add_space_prefix: bool) -> PreTokenizer:
    """Raises ``ValueError`` for a name that is not in ``PRE_TOKENIZERS``."""
    factory = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if factory is None:
        raise ValueError(f"tokenizer.ggml.pre={name!r} is not supported; supported are {', '.join(sorted(PRE_TOKENIZERS))}")
    return factory(add_space_prefix)
