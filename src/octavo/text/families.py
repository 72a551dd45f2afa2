"""The ``tokenizers`` library's models and normalizers, set up as each family of tokenizers needs them.

SentencePiece keeps no merges: its BPE joins the pair whose result has the best score, so the merges are made here from the scores.
Its normalizer works on the whole text, hence no pre-tokenizer: pieces may reach over spaces if the vocabulary has such pieces.
The library's decoders are set too, so that tests can hold ours to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from octavo.text.charsmap import check_charsmap
from octavo.text.spelling import SPACE


def bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
    nfc: bool = False,
) -> tokenizers.Tokenizer:
    """BPE by the rank of merges. Raises ``ValueError`` when a merge needs tokens that ``vocabulary`` lacks."""
    try:
        library = tokenizers.Tokenizer(
            models.BPE(
                vocab=dict(vocabulary),
                merges=list(merges),
                unk_token=unknown,
                fuse_unk=unknown is not None,
                byte_fallback=byte_fallback,
                ignore_merges=ignore_merges,
            )
        )
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from error
    if nfc:
        library.normalizer = normalizers.NFC()
    return library


def merges_by_score(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best score of the result first."""
    found = []
    for token, index in vocabulary.items():
        score = -scores[index]
        for middle in range(1, len(token)):
            left, right = token[:middle], token[middle:]
            if left in vocabulary and right in vocabulary:
                found.append((score, left, right))
    found.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in found]


def unigram(tokens: Sequence[str], scores: Sequence[float], unknown: int, *, byte_fallback: bool) -> tokenizers.Tokenizer:
    """SentencePiece's unigram model: the most probable way to cut a text, ``scores`` being log-probabilities."""
    library = tokenizers.Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unknown, byte_fallback))
    if byte_fallback:  # the library would take "<0x41>" in a text for the byte token of that name
        library.pre_tokenizer = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous")
    return library


def wordpiece(vocabulary: Mapping[str, int], unknown: str, *, lowercase: bool, strip_accents: bool) -> tokenizers.Tokenizer:
    """BERT's: words and punctuation, then the longest pieces first; a word with no way to spell it is unknown as a whole."""
    library = tokenizers.Tokenizer(models.WordPiece(dict(vocabulary), unk_token=unknown))
    library.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(cleanup=True)
    return library


def space_decoder(*, strip_first: int) -> decoders.Decoder:
    """SentencePiece's: U+2581 is a space, byte tokens are bytes, and the space that was put in front is dropped."""
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", strip_first, 0)] if strip_first else steps)


def space_normalizer(*, add_prefix: bool, charsmap: bytes = b"", merge_spaces: bool = False) -> normalizers.Normalizer:
    """SentencePiece's: its map of characters, spaces merged and stripped, one put in front, and all written as U+2581.

    Raises ``ValueError`` when ``charsmap`` (a compiled double array) is broken.
    """
    steps: list[normalizers.Normalizer] = []
    if charsmap:
        try:
            check_charsmap(charsmap)
            steps.append(normalizers.Precompiled(charsmap))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"tokenizer.ggml.precompiled_charsmap is invalid: {error}") from error
    if merge_spaces:
        steps += [  # at the end, what looks like a space written as U+2581 goes as well
            normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if add_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)
