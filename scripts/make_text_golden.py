"""Makes tests/text/golden: what llama.cpp and transformers make of SmolLM2's tokenizer and of chat templates.

    python scripts/make_text_golden.py MODEL.gguf --llama-server path/to/llama-server

Run it where ``transformers`` and ``gguf`` are installed. Token ids come from llama.cpp, which knows the file's
pre-tokenizer, except for texts with bytes that this vocabulary cannot spell: both drop the byte, but llama.cpp keeps
its neighbours apart, and the model was trained with what the ``tokenizers`` library does, which joins them. Decoded text and
rendered chats come from transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoTokenizer

TESTS = Path(__file__).resolve().parent.parent / "tests" / "text"

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\t",
    " \n \n",
    "\r\n",
    "a",
    " a",
    "a ",
    "  a  b  ",
    "Hello, world!",
    "The capital of France is",
    "don't can't we'll I'd they've it's I'm you're DON'T ’s 's's",
    "0",
    "00",
    "123456789",
    "1,234,567.89",
    "3.14e-10",
    "v1.2.3-rc4",
    "x2y3z4",
    " 7 77 777",
    "٣٤٥ १२३ ⅧⅫ ½ ²³ ①②",
    "２０２６",
    "naïve café façade Ångström",
    "e\u0301 vs é",
    "Zażółć gęślą jaźń",
    "Привет, мир! Как дела?",
    "Ελληνικά",
    "你好，世界。今天天气很好",
    "こんにちは世界",
    "カタカナ ﾊﾝｶｸ",
    "안녕하세요 세계",
    "สวัสดีชาวโลก",
    "नमस्ते दुनिया",
    "שלום עולם",
    "مرحبا بالعالم",
    "العَرَبِيَّة",
    "\u202bRTL\u202c mixed עם English",
    "👋",
    "👩‍👩‍👧‍👦",
    "👍🏽👍🏿",
    "🇩🇪🇯🇵",
    "❤️ ❤",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "a👋b",
    "👋 👋",
    "1️⃣2️⃣",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́O",
    "\u00a0nbsp\u00a0",
    "\u2003em\u2003",
    "\u3000全角\u3000",
    "\u200bzero\u200bwidth",
    "\ufeffbom",
    "\ufffd",
    "soft\u00adhyphen",
    "\u2028line\u2029",
    "\x00",
    "a\x00b",
    "\x01\x02\x03\x05",
    "\x7f",
    "\x1b[31mred\x1b[0m",
    "\x85next",
    "\x0b\x0c\x1c\x1d",
    "bell\x07",
    "\x04",
    "n=\x06\x06'",
    "}\x04}",
    "def f(x):\n    return x**2  # square\n\n\nclass A:\n\tpass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] >> 3; }",
    "SELECT * FROM t WHERE x != 'it''s';",
    '<div class="a">&nbsp;</div>',
    "https://example.org/a/b?c=d&e=%20f#g",
    "C:\\dir\\file.txt",
    '{"k": [1, 2.5, null, true]}',
    "$E = mc^2$ \\frac{1}{2}",
    "~/.bashrc && sudo rm -rf /",
    "===---***___",
    "....,,,,;;;;",
    "((((([[[[{{{{",
    "!?!?!?",
    "<|im_end|>",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|im_end|>b",
    " <|im_end|> ",
    "<|im_end|><|endoftext|>",
    "<|im_end|",
    "<|IM_END|>",
    "<| im_end |>",
    "<repo_name>x<file_sep>y<filename>z",
    "<jupyter_code>print(1)<empty_output>",
    "<file_sep>n='",
    "<|endoftext|>\n\n<|endoftext|>",
    "</s><s>[INST]<unk>",
    "Ġhello",
    "ĠĠ",
    "Ċ",
    "âĢĻ",
    "▁hello",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                   x",
    "\U0010fffd",
    "\ue000",
    "\U000f0000",
    "\u0378",
    "Supercalifragilisticexpialidocious antidisestablishmentarianism",
]

POOLS = [
    "abc xyz",
    "  \t\n\r\x0b\x0c\u00a0\u2003\u3000\u200b",
    "0123٣४Ⅷ½²",
    "'s'll'T",
    "éßñ",
    "你好世界，。",
    "שלוםمرحبا",
    "👩‍👩‍👧🏽🇩🇪❤️",
    "\x00\x01\x04\x06\x7f\x85",
    "({[]})=>!=;//",
    "\u0301\u0300",
    "𝔘𝕟\U000e0001\U0010ffff",
    "🤗<|>",
    "\ufeff\ufffd",
]
PIECES = ["<|im_end|>", "<file_sep>", " the", "don't", "    ", "\n\n"]

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c\n\n  d "}],
    [{"role": "user", "content": ""}],
    [{"role": "assistant", "content": "I begin."}],
    [{"role": "user", "content": "<|im_end|> & <b>\"quotes\"</b> 'äöü' 👩‍👩‍👧 {{ x }} {% y %}"}],
    [{"role": "tool", "content": "42", "name": "calculator"}, {"role": "user", "content": "so?"}],
]

PARAMETERS = {"type": "object", "properties": {"b": {}, "a": {}}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é> & 'x'", "parameters": PARAMETERS}}]


class LlamaServer:
    """llama.cpp's server on a free port of this machine, for as long as the ``with`` block lasts."""

    def __init__(self, binary: str, model: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [binary, "-m", model, "--host", "127.0.0.1", "--port", str(self.port), "-t", "1", "-c", "512", "-np", "1"]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(binary).resolve().parent)}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)

    def __enter__(self) -> LlamaServer:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"):
                    return self
            except OSError:
                time.sleep(0.25)
        self.__exit__()
        raise SystemExit("llama-server did not come up")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def tokenize(self, text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)["tokens"]


def random_texts(rng: random.Random, count: int) -> list[str]:
    def piece() -> str:
        return rng.choice(rng.choice(POOLS)) if rng.random() < 0.9 else rng.choice(PIECES)

    return ["".join(piece() for _ in range(rng.randint(2, 14))) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-server", required=True)
    arguments = parser.parse_args()
    rng = random.Random(20260)
    reference = AutoTokenizer.from_pretrained(arguments.model.parent, gguf_file=arguments.model.name)
    # Its GGUF conversion takes every byte-level model for GPT-2, which does not split digits; the original tokenizer does.
    reference.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    alphabet = {byte for token in reference.get_vocab() if len(token) == 1 for byte in _spelled(token)}

    encoded = []
    with LlamaServer(arguments.llama_server, str(arguments.model)) as server:
        for text in TEXTS + random_texts(rng, 200):
            spellable = all(byte in alphabet for byte in text.encode())
            ids = server.tokenize(text) if spellable else reference(text, add_special_tokens=False).input_ids
            encoded.append({"text": text, "ids": ids})

    decoded = []
    for _ in range(100):
        top = rng.choice((300, len(reference)))
        ids = [rng.randrange(top) for _ in range(rng.randint(1, 12))]
        texts = [reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for skip in (True, False)]
        decoded.append({"ids": ids, "skipping": texts[0], "whole": texts[1]})
    _write("smollm2_tokens.json", {"encode": encoded, "decode": decoded})

    chats = [
        {"messages": messages, "add_generation_prompt": add, "text": _render(reference, None, messages, add)}
        for messages in CONVERSATIONS
        for add in (True, False)
    ]
    templates = []
    for path in sorted((TESTS / "templates").glob("*.jinja")):
        for messages in CONVERSATIONS[:3]:
            for tools, flavour in ((None, "sweet"), (TOOLS, "sour")):
                case = {"messages": messages, "tools": tools, "flavour": flavour}
                text = _render(reference, path.read_text(), messages, True, tools=tools, flavour=flavour)
                templates.append({"template": path.name, **case, "text": text})
    tokens = {"bos_token": reference.bos_token, "eos_token": reference.eos_token}
    _write("chats.json", {"smollm2": chats, "templates": templates, **tokens})


def _render(reference: Any, template: str | None, messages: list[dict[str, Any]], add: bool, **kwargs: Any) -> str:
    return reference.apply_chat_template(messages, chat_template=template, add_generation_prompt=add, tokenize=False, **kwargs)


def _spelled(character: str) -> list[int]:
    """The byte that a character of GPT-2's alphabet spells."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    return [table[character]] if character in table else []


def _write(name: str, content: dict[str, Any]) -> None:
    lines = []
    for key, value in content.items():
        rows = ",\n  ".join(json.dumps(row) for row in value) if isinstance(value, list) else None
        lines.append(f" {json.dumps(key)}: " + (f"[\n  {rows}\n ]" if rows is not None else json.dumps(value)))
    (TESTS / "golden" / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
