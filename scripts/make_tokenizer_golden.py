"""Makes tests/text/golden/{byte_level,sentencepiece,wordpiece}.json: small tokenizers, and what the originals make of hard texts.

    python scripts/make_tokenizer_golden.py --libllama path/to/libllama.so

Run it where ``tokenizers``, ``sentencepiece`` and ``gguf`` are installed. The vocabularies are trained here, on pieces of many
scripts and without respect for words, so that their merges reach over every border that a pre-tokenizer may draw. Expected ids come from
llama.cpp for every name of a byte-level pre-tokenizer, from ``sentencepiece`` for its models, from ``tokenizers`` for WordPiece; the
latter two also go through llama.cpp, which has to agree where its reading of the format is meant to be the same.
"""

# ruff: noqa: SIM905 - lists of words read better unquoted

from __future__ import annotations

import argparse
import base64
import ctypes
import io
import json
import random
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "text" / "golden"

ATOMS = [
    *(
        "a b the The THE wOrd don't DON'T we'll I'D they'Ve 's 'S ’s 0 7 12 345 6789 1234567 ١٢٣ Ⅷ ² ½ ① \n \r\n \t \x0b \x0c \x85 \xa0 "
        "\u2003 \u3000 . , ! ? ( ) [ ] / // //\n -- _ ` $ + < = > ^ ~ | # @ \\ ' \" … 。 ， 、 ！ “ ” é ñ ß Ä Ж д Дом Ωμ א שלום مرحبا ؟ ، "
        "नमस्ते हिन्दी ไทย ខ្មែរ 你好 世界 日本語 カタカナ ひらがな 한국어 ㄱ ㄅ 𝒳 𐐀 🦙 😶\u200d🌫\ufe0f 👩\u200d👩\u200d👧 🇩🇪 ☺ ✅ € © ∑ ← "
        "\u200b \u200d \ufeff \x00 \x01 \x7f ǅ ʰ ª <|x|> IMGIMGABZ <sentinel:12> e\u0301 å ﬀ Ａ １ foo(bar) x_y camelCase HTTPServer"
    ).split(" "),
    *(" ", "  ", "   ", "\n\n", " \n", "    ", "\t\t"),
]

FIXED = [
    *("", " ", "  ", "\n", "\n\n\n", " \n \n", "\r\n\r\n", "\t\tx", "a", " a", "a ", "  a  b  ", "Hello, world! It's 12345 o'clock."),
    "def f(x):\n    return x ** 2  # double\n\n\nclass A:\n\tpass\n",
    '{"a": [1, 2.5e-3, null], "b": "\\u00e9"}',
    "https://example.org/a_b?c=d&e=%20#f",
    *("naïve café — “quoted” … ok", "Привет, мир! Ελληνικά", "مرحبا بالعالم ١٢٣، كيف؟", "שָׁלוֹם עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก"),
    *("你好，世界。今天天气12度", "日本語のテキスト カタカナ", "한국어 문장입니다."),
    "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 🇩🇪🇫🇷 🦙🦙",
    "e\u0301e\u0301 a\u0300\u0301 \u0301x",
    *("x" * 300, "ab" * 150, "🦙" * 40, "1" * 50, " " * 60, "-" * 45, "\n" * 20),
    *("\x00\x01\x7f\x1b[0m", "\ufffd\ufffe\u200b\u200d\ufeff", "<s></s><unk><|im_end|>[CLS][SEP]<pad>", "▁a▁▁b", "<0x41><0x0A>"),
    "  lead and trail  ",
]
"""Texts with special tokens, and those that look like a model's own spelling, are among the last five."""


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice(ATOMS) + rng.choice(["", "", "", " "]) for _ in range(rng.randint(1, 12)))


class _ModelParams(ctypes.Structure):
    """``struct llama_model_params``; only ``vocab_only`` matters here."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, ctypes.c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, ctypes.c_void_p) for name in ("tensor_split", "progress_callback", "progress_callback_user_data", "kv_overrides")),
        *((name, ctypes.c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "load_mtp")),
    )


class LlamaCpp:
    """llama.cpp's tokenizers, by the C interface of ``libllama``."""

    def __init__(self, path: Path) -> None:
        self._lib = lib = ctypes.CDLL(str(path))
        lib.llama_model_default_params.restype = _ModelParams
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _ModelParams]
        lib.llama_model_load_from_file.restype = ctypes.c_void_p
        lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
        lib.llama_model_get_vocab.restype = ctypes.c_void_p
        lib.llama_model_free.argtypes = [ctypes.c_void_p]
        lib.llama_tokenize.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
        ]  # fmt: skip
        log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._quiet = log(lambda level, text, data: None)
        lib.llama_log_set.argtypes = [log, ctypes.c_void_p]
        lib.llama_log_set(self._quiet, None)

    def encode(self, metadata: dict[str, Any], texts: list[str], *, add_special: bool = False) -> list[list[int]]:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            write_gguf(metadata, Path(file.name))
            params = self._lib.llama_model_default_params()
            params.vocab_only = True
            model = self._lib.llama_model_load_from_file(file.name.encode(), params)
        if not model:
            raise RuntimeError(f"llama.cpp refuses {metadata['tokenizer.ggml.model']}/{metadata.get('tokenizer.ggml.pre')}")
        try:
            vocab = self._lib.llama_model_get_vocab(model)
            return [self._encode_one(vocab, text.encode(), add_special) for text in texts]
        finally:
            self._lib.llama_model_free(model)

    def _encode_one(self, vocab: int, data: bytes, add_special: bool) -> list[int]:
        ids = (ctypes.c_int32 * (len(data) + 16))()
        count = self._lib.llama_tokenize(vocab, data, len(data), ids, len(ids), add_special, True)
        if count < 0:
            raise RuntimeError(f"llama.cpp wants room for {-count} tokens")
        return ids[:count]


def write_gguf(metadata: dict[str, Any], path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif key.endswith("charsmap"):
            writer.add_precompiled_charsmap(bytes(value))
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


# Byte-level BPE ------------------------------------------------------------------------------------------------------------------

NAMES = (
    "default falcon gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 jais trillion granite-docling jina-es jina-de jina-v2-es jina-v2-de "
    "jina-v1-en jina-v2-code roberta-bpe mpt olmo modern-bert starcoder refact smollm codeshell exaone minerva-7b mellum2 command-r "
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe chatglm-bpe glm4 glm5 qwen2 megrez "
    "deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open grok-2 qwen35 deepseek-llm deepseek-coder deepseek-v3 hunyuan-dense "
    "joyai-llm hy_v4 spark2_5 youtu gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m tiny_aya cohere2moe tekken kimi-k2 "
    "poro-chat bloom gpt3-finnish viking superbpe bailingmoe bailingmoe2 llada-moe seed-coder ufakzeka laguna afmoe exaone-moe minicpm5 "
    "jais-2 chameleon"
).split()
DEVIATING = set(
    "youtu gpt-4o llama4 kanana2 talkie minimax-m2 tiny_aya cohere2moe tekken kimi-k2 afmoe deepseek-llm deepseek-coder".split()
)
"""llama.cpp approximates these: classes of letters without marks or case, white space beyond ASCII, digits after blanks."""


def is_plain(text: str) -> bool:
    """Whether llama.cpp's approximations do not matter."""
    return text.isascii() and not re.search(r"[a-z][A-Z]|[A-Z]{2}[a-z]|\s\d|[\x00-\x08\x0b\x0c\x0e-\x1f]", text)


def byte_characters() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def byte_level(llama: LlamaCpp) -> dict[str, Any]:
    spelling = byte_characters()
    rng = random.Random(1)
    trained = tokenizers.Tokenizer(models.BPE())
    trained.train_from_iterator(
        ("".join(spelling[byte] for byte in random_text(rng).encode()) for _ in range(3000)),
        trainers.BpeTrainer(vocab_size=900, initial_alphabet=[*spelling.values()], show_progress=False, max_token_length=24),
    )
    merges = [" ".join(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [spelling[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges]
    assert len(set(tokens)) == len(tokens)
    texts = [unicodedata.normalize("NFC", text) for text in FIXED + [random_text(rng) for _ in range(40)]]
    by_ids: dict[str, list[str]] = {}
    for name in NAMES:
        metadata = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": name,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * len(tokens),
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.add_bos_token": False,
        }
        ids = llama.encode(metadata, texts)
        known = [i if name not in DEVIATING or is_plain(text) else None for i, text in zip(ids, texts, strict=True)]
        by_ids.setdefault(json.dumps(known, separators=(",", ":")), []).append(name)
    return {"merges": merges, "texts": texts, "expected": [{"pre": names, "ids": json.loads(ids)} for ids, names in by_ids.items()]}


# SentencePiece -------------------------------------------------------------------------------------------------------------------

RULES = "FB01\t66 69\nFB00\t66 66\nFF21\t41\nFF11\t31\n3000\t20\n0009\t20\n00BD\t31 2F 32\n0065 0301\tE9\n200B\t\n"
"""A small map of characters instead of NFKC's 200 kB: ligatures, full width, blanks, one to many, many to one, one to none."""


def train(kind: str, **options: Any) -> sentencepiece.SentencePieceProcessor:
    rng = random.Random(2)
    corpus = [random_text(rng).replace("\n", " ").replace("\x00", "") for _ in range(2000)]
    corpus = [text for text in corpus if text.strip()]
    words = "the cat sat on a mat and then the other cats ran to that house with some bread for their children".split()
    corpus += [" ".join(rng.choices(words, k=8)) for _ in range(2000)]
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as directory:
        rules = Path(directory) / "rules.tsv"
        rules.write_text(RULES)
        if options.pop("charsmap"):
            options["normalization_rule_tsv"] = str(rules)
        else:
            options["normalization_rule_name"] = "identity"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type=kind,
            num_threads=1,
            minloglevel=2,
            hard_vocab_limit=False,
            **options,
        )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(processor: sentencepiece.SentencePieceProcessor, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp's converters write for such a model."""
    types = []
    for index in range(processor.vocab_size()):
        if processor.is_unknown(index):
            types.append(2)
        elif processor.is_control(index):
            types.append(3)
        elif processor.is_unused(index):
            types.append(5)
        elif processor.is_byte(index):
            types.append(6)
        else:
            types.append(4 if processor.id_to_piece(index) in options.get("user_defined_symbols", ()) else 1)
    metadata = {
        "tokenizer.ggml.model": {"bpe": "llama", "unigram": "t5"}[kind],
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [processor.id_to_piece(index) for index in range(processor.vocab_size())],
        "tokenizer.ggml.scores": [processor.get_score(index) for index in range(processor.vocab_size())],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.add_space_prefix": options["add_dummy_prefix"],
        "tokenizer.ggml.remove_extra_whitespaces": options["remove_extra_whitespaces"],
        "tokenizer.ggml.add_bos_token": kind == "bpe",
        "tokenizer.ggml.add_eos_token": kind == "unigram",
    }
    charsmap = normalizer_charsmap(processor.serialized_model_proto())
    if charsmap:
        metadata["tokenizer.ggml.precompiled_charsmap"] = list(charsmap)
    return metadata


def normalizer_charsmap(proto: bytes) -> bytes:
    """Field 2 (``precompiled_charsmap``) of field 3 (``normalizer_spec``) of a ``ModelProto``."""

    def fields(data: bytes) -> Any:
        position = 0

        def varint() -> int:
            nonlocal position
            value, shift = 0, 0
            while True:
                byte = data[position]
                position += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return value

        while position < len(data):
            key = varint()
            length = {0: 0, 1: 8, 5: 4}.get(key & 7)
            if key & 7 == 0:
                varint()
                continue
            length = varint() if key & 7 == 2 else length
            yield key >> 3, data[position : position + length]
            position += length

    for number, value in fields(proto):
        if number == 3:
            for inner, content in fields(value):
                if inner == 2:
                    return bytes(content)
    return b""


def sentencepieces(llama: LlamaCpp) -> list[dict[str, Any]]:
    cases = []
    rng = random.Random(3)
    texts = FIXED[:-5] + ["▁a▁▁b", "  lead and trail  ", "the cat  sat\ton ﬁrst ½ Ａ１ é\u200b"] + [random_text(rng) for _ in range(40)]
    prefixed = {"add_dummy_prefix": True, "remove_extra_whitespaces": False, "charsmap": False}
    plain = prefixed | {"add_dummy_prefix": False}
    for name, kind, options in (
        ("llama", "bpe", prefixed | {"byte_fallback": True, "split_digits": True}),
        ("gemma", "bpe", plain | {"byte_fallback": True}),
        ("t5", "unigram", {"add_dummy_prefix": True, "remove_extra_whitespaces": True, "charsmap": True}),
        ("phrases", "unigram", plain | {"byte_fallback": True, "split_by_whitespace": False, "charsmap": True}),
    ):
        processor = train(kind, vocab_size=700, character_coverage=0.98, **options)
        metadata = sentencepiece_metadata(processor, kind, options)
        ids = [processor.encode(text) for text in texts]
        theirs = llama.encode(metadata, texts)
        differ = [text for text, a, b in zip(texts, ids, theirs, strict=True) if a != b]
        print(f"{name}: {len(differ)} of {len(texts)} texts differ between sentencepiece and llama.cpp: {differ[:3]!r}")
        metadata["tokenizer.ggml.precompiled_charsmap"] = base64.b64encode(
            bytes(metadata.get("tokenizer.ggml.precompiled_charsmap", []))
        ).decode()
        encoded = [{"text": text, "ids": i} for text, i in zip(texts, ids, strict=True)]
        decoded = []
        while len(decoded) < 50:
            sample = [rng.randrange(3, processor.vocab_size()) for _ in range(rng.randint(1, 8))]
            if not any(processor.is_byte(i) or processor.is_unknown(i) for i in sample):
                decoded.append({"ids": sample, "text": processor.decode(sample)})
        cases.append({"name": name, "metadata": metadata, "encode": encoded, "decode": decoded})
    return cases


# WordPiece -----------------------------------------------------------------------------------------------------------------------


def wordpieces(llama: LlamaCpp) -> list[dict[str, Any]]:
    cases = []
    for name, lowercase in (("uncased", True), ("cased", False)):
        rng = random.Random(4)
        original = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        original.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        original.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        original.decoder = decoders.WordPiece(cleanup=True)
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        corpus = [random_text(rng) for _ in range(1500)] + [text for text in FIXED if text.isascii()] * 20
        original.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=500, special_tokens=specials, show_progress=False))
        vocabulary = original.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        phantom = [t if t in specials else t[2:] if t.startswith("##") else "▁" + t for t in tokens]
        metadata = {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.pre": "bert-bge",
            "tokenizer.ggml.tokens": phantom,
            "tokenizer.ggml.token_type": [3 if t in specials else 1 for t in tokens],
            "tokenizer.ggml.unknown_token_id": 1,
            "tokenizer.ggml.cls_token_id": 2,
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.seperator_token_id": 3,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.normalizer.lowercase": lowercase,
        }
        texts = FIXED + [random_text(rng) for _ in range(40)]
        ids = [original.encode(text).ids for text in texts]
        theirs = llama.encode(metadata, texts)
        differ = [text for text, a, b in zip(texts, ids, theirs, strict=True) if a != b]
        print(f"{name}: {len(differ)} of {len(texts)} texts differ between tokenizers and llama.cpp: {differ[:3]!r}")
        decoded = []
        for _ in range(60):
            sample = [rng.randrange(5, len(tokens)) for _ in range(rng.randint(1, 8))]
            decoded.append({"ids": sample, "text": original.decode(sample)})
        encoded = [{"text": text, "ids": i} for text, i in zip(texts, ids, strict=True)]
        cases.append({"name": name, "metadata": metadata, "encode": encoded, "decode": decoded})
    return cases


def write(name: str, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    (GOLDEN / name).write_text(text.replace('},{"', '},\n{"') + "\n")
    print(f"{name}: {len(text)} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--libllama", type=Path, required=True)
    llama = LlamaCpp(parser.parse_args().libllama)
    write("byte_level.json", byte_level(llama))
    write("sentencepiece.json", sentencepieces(llama))
    write("wordpiece.json", wordpieces(llama))


if __name__ == "__main__":
    main()
