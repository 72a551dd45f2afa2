"""The ways in which byte-level BPE models cut text into words before merging, by their name in GGUF files.

``tokenizer.ggml.pre`` names one of them; the names are llama.cpp's (``src/llama-vocab.cpp``) and the patterns those of the
models' own ``tokenizer.json``. A wrong choice gives plausible but different tokens, so an unknown name is refused
rather than guessed. To support another, add a row: patterns are applied in turn, each cutting every piece that the former left
into matches and what lies between them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tokenizers import Regex, pre_tokenizers


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """What a name in ``tokenizer.ggml.pre`` stands for."""

    patterns: tuple[str, ...]
    nfc: bool = False
    """The model's own tokenizer composes characters (Unicode NFC) first."""
    ignore_merges: bool = False
    """A word that is in the vocabulary is a token, whatever the merges say."""
    adds_bos: bool = False
    """A file that says nothing about ``add_bos_token`` wants it."""
    byte_level: bool = True
    """False: the vocabulary spells text as it is, with U+2581 for a space and ``<0xXX>`` for other bytes."""
    cut_before: str = ""
    """A last pattern, whose matches begin a piece rather than being one."""

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = []
        *patterns, last = self.patterns
        if last != _GPT2 or not self.byte_level:  # GPT-2's pattern is built into ``ByteLevel``
            patterns.append(last)
        steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        if self.cut_before:
            steps.append(pre_tokenizers.Split(Regex(self.cut_before), "merged_with_next"))
        if self.byte_level:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=last == _GPT2))
        return pre_tokenizers.Sequence(steps)


def _ranges(codes: str) -> str:
    """The inside of a character class from code points in hexadecimal: ``41-5A B5``."""
    return "".join("-".join(chr(int(code, 16)) for code in item.split("-")) for item in codes.split())


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _cl100k(digits: str) -> str:
    """GPT-4's pattern (tiktoken's cl100k_base), for the family of models that differ in how many digits make a word."""
    return f"{_SUFFIX}|{_WORD}|{digits}|{_MARKS}|{_BLANKS}"


def _o200k(suffix: str, digits: str, upper: str = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", lower: str = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]") -> str:
    """GPT-4o's pattern (tiktoken's o200k_base): a word also ends where its case turns from lower to upper."""
    start = r"[^\r\n\p{L}\p{N}]?"
    marks = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
    return f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}|{digits}|{marks}|{_BLANKS}"


_DEEPSEEK_WORDS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _BLANKS
_DEEPSEEK_V3 = (r"\p{N}{1,3}", f"[{_ranges('4E00-9FA5 3040-309F 30A0-30FF')}]+", _DEEPSEEK_WORDS)
_DEEPSEEK_LETTERS = _ranges(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 "
    "48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 "
    "1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC "
    "1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 "
    "2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 "
    "FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_MARKS = _ranges("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_DEEPSEEK_ASIAN = f"[{_ranges('4E00-9FA5 800-4E00 AC00-D7FF')}]+"
_AFMOE_ASIAN = _ranges(
    "4E00-9FFF 3400-4DBF F900-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF 1000-109F AA60-AA7F A9E0-A9FF "
    "AC00-D7AF 1100-11FF"
)
_YOUTU_ASIAN = "|".join(
    f"[{_ranges(codes)}]+"
    for codes in (
        "AC00-D7A3 3131-318E",
        "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F",
        "3105-312F",
        "4E00-9FA5 3040-309F 30A0-30FF",
    )
)
_BLOOM = " ?[^(\\s|.,!?" + _ranges("2026 3002 FF0C 3001 964 6D4 60C") + ")]+"
_UPPER_NOT_HAN = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER_NOT_HAN = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI_K2 = r"\p{Han}+|" + _o200k(_SUFFIX + "?", r"\p{N}{1,3}", _UPPER_NOT_HAN, _LOWER_NOT_HAN).replace(r"[\r\n/]*", r"[\r\n]*")
_QWEN35 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _BLANKS
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_EXAONE_PHRASE = r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"
_EXAONE_MOE = rf"{_SUFFIX}|{_EXAONE_PHRASE}" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
_JAIS2_BLANKS = "".join(rf"\s{{{count}}}(?!\S)|" for count in (512, 256, 128, 64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}"
_JAIS2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|\s*[\r\n]+|{_JAIS2_BLANKS}"

# Groups of three digits, counted from the end of a number. The originals look ahead to the end from every digit, in time that grows
# with the square of the number's length; here that happens at its beginning only, and groups follow one another from there.
_GROUPS_BEFORE = r"(?<!\d)\d{1,2}(?=(?:\d{3})+(?!\d))\K\d{3}|\d{3}"  # (?=(\d{3})+(?!\d))
_GROUPS_OF_WORDS = r"(?<!\d)(?:\d{1,2}(?=(?:\d{3})+\b)|\d{3}(?=(?:\d{3})*\b)|\d{1,2}\b)|\G(?<=\d)\d{3}"  # \d{1,3}(?=(?:\d{3})*\b)
_GROUPS = r"(?<!\p{N})\p{N}{1,2}(?=(?:\p{N}{3})+(?!\p{N}))|\p{N}{3}|\p{N}{1,2}"  # \p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))

_LLAMA3 = PreTokenization((_cl100k(r"\p{N}{1,3}"),))
_QWEN2 = PreTokenization((_cl100k(r"\p{N}"),))
_ONE_DIGIT = PreTokenization((r"\p{N}", _GPT2))
_FALCON_LIKE = (_GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

_FAMILIES: tuple[tuple[str, PreTokenization], ...] = (
    ("default", PreTokenization((r"[\p{P}\$\+<=>\^~\|]+", *_FALCON_LIKE))),
    ("falcon", PreTokenization((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    (
        "gpt-2 gpt2 phi-2 gigachat a.x-4.0 mellum exaone4 jais trillion granite-docling jina-es jina-de jina-v2-es jina-v2-de "
        "jina-v1-en jina-v2-code roberta-bpe",
        PreTokenization((_GPT2,)),
    ),
    ("mpt olmo modern-bert", PreTokenization((_GPT2,), nfc=True)),
    ("starcoder refact smollm codeshell exaone minerva-7b mellum2", _ONE_DIGIT),
    ("command-r", replace(_ONE_DIGIT, nfc=True)),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", replace(_LLAMA3, ignore_merges=True, adds_bos=True)),
    ("dbrx smaug-bpe chatglm-bpe", _LLAMA3),
    ("glm4 glm5", replace(_LLAMA3, ignore_merges=True)),
    ("qwen2 megrez", replace(_QWEN2, nfc=True)),
    ("deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open grok-2", _QWEN2),
    ("qwen35", PreTokenization((_QWEN35,), nfc=True)),
    (
        "deepseek-llm",
        PreTokenization(
            (r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", rf"\s?[{_DEEPSEEK_MARKS}]+", r"\s+$", _DEEPSEEK_ASIAN, r"\p{N}+"),
        ),
    ),
    ("deepseek-coder", PreTokenization((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_ASIAN, r"\p{N}"))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenization(_DEEPSEEK_V3)),
    (
        "spark2_5",
        PreTokenization((*_DEEPSEEK_V3[:2], _DEEPSEEK_WORDS.replace(r"+[\r\n]*|\s*[\r\n]+", r"+|[\r\n]"), r"\p{N}")),
    ),
    ("youtu", PreTokenization((_YOUTU_ASIAN, _o200k(_SUFFIX + "?", r"\p{N}")), ignore_merges=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenization((_o200k(_SUFFIX + "?", r"\p{N}{1,3}"),))),
    ("granite-embed-multi-97m", PreTokenization((_o200k(_SUFFIX + "?", r"\p{N}{1,3}"),), ignore_merges=True)),
    ("tiny_aya cohere2moe", PreTokenization((_GROUPS_OF_WORDS, _o200k(_SUFFIX + "?", r"\p{N}{1,3}")))),
    ("tekken", PreTokenization((_o200k("", r"\p{N}"),), ignore_merges=True, adds_bos=True)),
    ("kimi-k2", PreTokenization((_KIMI_K2,))),
    ("poro-chat bloom gpt3-finnish", PreTokenization((_BLOOM,))),
    ("viking", PreTokenization((_BLOOM, r"\p{N}"))),
    ("superbpe", PreTokenization((r"\p{N}+",), cut_before=_GROUPS_BEFORE)),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenization((_BAILING,))),
    ("seed-coder", PreTokenization((rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}",))),
    ("ufakzeka", PreTokenization((rf"{_WORD}|\p{{N}}|{_MARKS}|{_BLANKS}",))),
    ("laguna", PreTokenization((r"[^\n]+|[\n]+", _cl100k(r"\p{N}")))),
    ("afmoe", PreTokenization((_GROUPS, f"[{_AFMOE_ASIAN}]+", _DEEPSEEK_WORDS))),
    ("exaone-moe", PreTokenization((_EXAONE_MOE,))),
    ("minicpm5", PreTokenization((r"\p{N}{1,3}", _cl100k(r"\p{N}+")), ignore_merges=True)),
    ("jais-2", PreTokenization((_JAIS2,))),
    (
        "chameleon",
        PreTokenization(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            adds_bos=True,
        ),
    ),
    ("gemma4 granite-embed-multi-311m", PreTokenization((r"[^\n]+|[\n]+",), byte_level=False, adds_bos=True)),
    ("sarvam-moe", PreTokenization((r"[^\n]+|[\n]+",), byte_level=False)),
)

PRE_TOKENIZERS: Mapping[str, PreTokenization] = {name: kind for names, kind in _FAMILIES for name in names.split()}


def pre_tokenization(name: object) -> PreTokenization:
    """Raises ``ValueError`` for a name that is not in ``PRE_TOKENIZERS``."""
    kind = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if kind is None:
        close = difflib.get_close_matches(name, PRE_TOKENIZERS, n=3) if isinstance(name, str) else []
        hint = f"; near it are {', '.join(close)}" if close else ""
        raise ValueError(f"tokenizer.ggml.pre={name!r} is not supported{hint}; supported are {', '.join(PRE_TOKENIZERS)}")
    return kind
