"""What every source of tokenizers must supply, whatever the family: ``TokenizerParts``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import tokenizers

from octavo.text.infill import FimTokens
from octavo.text.spelling import Spelling

END_OF_GENERATION_NAMES = frozenset(
    (
        "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>",
        "<|flush|>", "<end_of_turn>", "<end_of_utterance>", "<turn|>", "<eos>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
        "<｜end▁of▁sentence｜>", "[e~[",
    )
)  # fmt: skip
"""Tokens that end a turn or a text whatever the metadata say: files name only one of them as the end of sequence."""


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """``tokens[i]`` is token ``i`` as the vocabulary spells it. ``prefix_ids`` and ``suffix_ids`` go around a whole text.

    ``fim`` fills in the middle, where the model can.
    """

    library: tokenizers.Tokenizer
    tokens: Sequence[str]
    spelling: Spelling
    special_ids: frozenset[int]
    eos_token_ids: frozenset[int]
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    fim: FimTokens | None = None


def end_of_generation(vocabulary: dict[str, int], ordinary: Collection[int]) -> set[int]:
    """The ids of tokens that end a generation by their name. ``ordinary`` are the ids of tokens that may occur in text."""
    ends = set()
    for name in END_OF_GENERATION_NAMES & vocabulary.keys():
        # "</s>" may be an ordinary piece of HTML in a vocabulary; nobody writes "<|im_end|>" by chance.
        if vocabulary[name] not in ordinary or name.startswith("<|"):
            ends.add(vocabulary[name])
    # Where a channel ends with <|end|>, a turn ends with something else (gpt-oss, Solar).
    if {"<|return|>", "<|call|>"} <= vocabulary.keys() or {"<|calls|>", "<|flush|>"} <= vocabulary.keys():
        ends.discard(vocabulary.get("<|end|>", -1))
    return ends
