"""Hugging Face directories beside the ``tokenizers`` library that wrote them: families, special tokens, templates, broken files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tests.text.conftest import SPELLING, read_golden
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from octavo.text import IncrementalDetokenizer, Tokenizer, load_chat_template, load_hf_chat_template, load_hf_tokenizer, load_tokenizer

TEXTS = read_golden("byte_level.json")["texts"]
HARD = st.lists(st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]))), max_size=4).map("".join)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _trained(library: tokenizers.Tokenizer, trainer: Any) -> tokenizers.Tokenizer:
    library.train_from_iterator(TEXTS * 3, trainer)
    return library


def byte_level() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=[*SPELLING.values()], special_tokens=["<s>", "</s>"], show_progress=False
    )
    _trained(library, trainer)
    library.add_tokens([AddedToken("<think>", special=False), AddedToken("<|im_end|>", special=True)])
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    return library


def llama() -> tokenizers.Tokenizer:
    """Llama 2's: byte fallback, one space put in front and taken off again, ``<s>`` first."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    _trained(trained, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *model["vocab"]]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge) for merge in model["merges"]]
    library = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = trained.normalizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return library


def t5() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.Unigram())
    library.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    _trained(library, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False))
    library.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return library


def bert() -> tokenizers.Tokenizer:
    """With padding and truncation baked in, as in MiniLM's files."""
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _trained(library, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    library.enable_padding(length=128)
    library.enable_truncation(4)
    return library


def words() -> tokenizers.Tokenizer:
    """No decoder: tokens with spaces between."""
    library = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(library, trainers.WordLevelTrainer(vocab_size=100, special_tokens=["[UNK]"], show_progress=False))


FAMILIES: Mapping[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte_level": byte_level,
    "llama": llama,
    "t5": t5,
    "bert": bert,
    "words": words,
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[tokenizers.Tokenizer, Tokenizer]]:
    known: dict[str, tuple[tokenizers.Tokenizer, Tokenizer]] = {}

    def get(name: str) -> tuple[tokenizers.Tokenizer, Tokenizer]:
        if name not in known:
            directory = tmp_path_factory.mktemp(name)
            FAMILIES[name]().save(str(directory / "tokenizer.json"))
            library = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))  # with the scores as they were written
            library.no_padding()
            library.no_truncation()
            known[name] = library, load_hf_tokenizer(directory)
        return known[name]

    return get


def directory_with(path: Path, library: tokenizers.Tokenizer, **files: Any) -> Path:
    library.save(str(path / "tokenizer.json"))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("name", FAMILIES)
@given(text=HARD, add=st.booleans())
def test_encodes_as_the_library(loaded: Callable[[str], Any], name: str, text: str, add: bool) -> None:
    library, tokenizer = loaded(name)
    assert tokenizer.encode(text, add_special_tokens=add) == library.encode(text, add_special_tokens=add).ids


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data(), skip=st.booleans())
def test_decodes_as_the_library(loaded: Callable[[str], Any], name: str, data: st.DataObject, skip: bool) -> None:
    library, tokenizer = loaded(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    if skip:  # which the library takes from the added tokens alone
        ids = [i for i in ids if i not in tokenizer.special_ids or library.get_added_tokens_decoder()[i].special]
    theirs = library.decode(ids, skip_special_tokens=skip)
    ours = tokenizer.decode(ids, skip_special_tokens=skip)
    if "\ufffd" not in theirs:  # it gives up on all neighbouring byte tokens when one is not valid
        assert ours == theirs
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    assert "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush() == ours


@pytest.mark.parametrize("name", ["byte_level", "llama"])
@given(text=HARD)
def test_every_text_comes_back(loaded: Callable[[str], Any], name: str, text: str) -> None:
    _, tokenizer = loaded(name)
    for token in ("<s>", "</s>", "<unk>"):  # after which Llama's starts a new text, with a space of its own
        text = text.replace(token, "")
    expected = text.replace("▁", " ") if name == "llama" else text
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False) == expected


def test_decoders_of_llama_3_and_gemma(tmp_path: Path) -> None:
    library = llama()
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = load_hf_tokenizer(directory_with(tmp_path, library))
    ids = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.decode(ids) == library.decode(ids) == " the"


def test_special_tokens(tmp_path: Path) -> None:
    library = byte_level()
    end = library.token_to_id("<|im_end|>")
    bare = load_hf_tokenizer(directory_with(tmp_path, library))
    assert bare.bos_token_id is None
    assert bare.eos_token_ids == {1, end}, "known by name"
    assert bare.special_ids == {0, 1, end}
    assert bare.token_bytes(library.token_to_id("<think>")) == b"<think>"
    config = {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "eos_token": "<|im_end|>", "pad_token": None, "add_bos_token": True}
    generation = {"eos_token_id": [1, 65, 10**9], "pad_token_id": 0}
    full = load_hf_tokenizer(
        directory_with(tmp_path, library, tokenizer_config=config, generation_config=generation, config={"vocab_size": 512})
    )
    assert (full.bos_token_id, full.eos_token_id, full.pad_token_id) == (0, end, 0)
    assert full.eos_token_ids == {1, 65, end}
    assert full.vocab_size == 512, "as many as the model may emit"
    assert full.token_bytes(511) == b""
    assert full.decode([511]) == ""
    assert full.encode("a") == bare.encode("a"), "tokenizer.json's post-processor decides"
    library.post_processor = processors.Sequence([])
    mapped = load_hf_tokenizer(directory_with(tmp_path, library, tokenizer_config={}, special_tokens_map={"bos_token": "<s>"}))
    assert mapped.bos_token_id == 0


def test_add_bos_token_without_a_post_processor(tmp_path: Path) -> None:
    library = words()
    library.add_special_tokens(["<s>", "</s>"])
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}
    tokenizer = load_hf_tokenizer(directory_with(tmp_path, library, tokenizer_config=config))
    assert tokenizer.encode("a") == [tokenizer.bos_token_id, library.token_to_id("a"), tokenizer.eos_token_id]


def test_a_checkpoint_in_a_directory(tmp_path: Path) -> None:
    directory_with(tmp_path, byte_level(), tokenizer_config={"chat_template": "{{ messages[0].content }}"})
    checkpoint: Any = SimpleNamespace(path=tmp_path, metadata={})
    assert load_tokenizer(checkpoint).encode("a") == load_hf_tokenizer(tmp_path).encode("a")
    template = load_chat_template(checkpoint)
    assert template is not None
    assert template.render([{"role": "user", "content": "Hi"}]) == "Hi"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no tokenizer.json"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json: not a tokenizer"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json: not a tokenizer"),
        ({"tokenizer.json": None, "tokenizer_config.json": "[1]"}, r"tokenizer_config\.json: must hold an object, not list"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{,"}, r"tokenizer_config\.json: not valid JSON"),
        ({"tokenizer.json": None, "tokenizer_config.json": "[" * 100_000}, r"tokenizer_config\.json: not valid JSON"),
        ({"tokenizer.json": None, "generation_config.json": '{"eos_token_id": "x"}'}, "eos_token_id='x' is invalid"),
        ({"tokenizer.json": None, "generation_config.json": '{"eos_token_id": [true]}'}, r"eos_token_id=\[True\] is invalid"),
    ],
)
def test_broken_files(tmp_path: Path, files: dict[str, str | None], message: str) -> None:
    for name, text in files.items():
        if text is None:
            words().save(str(tmp_path / name))
        else:
            (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_hf_tokenizer(tmp_path)


def test_decoders_that_cannot_stream(tmp_path: Path) -> None:
    library = words()
    library.decoder = decoders.CTC()
    with pytest.raises(ValueError, match=r"decoder=\['CTC'\] is not supported"):
        load_hf_tokenizer(directory_with(tmp_path, library))
    library.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)])
    with pytest.raises(ValueError, match=r"decoder=\['Fuse', 'Strip'\] is not supported"):
        load_hf_tokenizer(directory_with(tmp_path, library))


def test_text_that_the_vocabulary_cannot_spell(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="text cannot be encoded: WordLevel error"):
        load_hf_tokenizer(directory_with(tmp_path, library)).encode("b")


def test_absurd_ids(tmp_path: Path) -> None:
    library = words()
    description = json.loads(library.to_str())
    description["model"]["vocab"]["far"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="yet an id of 2147483648"):
        load_hf_tokenizer(tmp_path)


def test_broken_charsmap(tmp_path: Path) -> None:
    description = json.loads(words().to_str())
    description["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "BAAAAAAEAAAA"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"tokenizer\.json: (precompiled_charsmap is invalid|not a tokenizer)"):
        load_hf_tokenizer(tmp_path)


MESSAGES = [{"role": "user", "content": "Hi"}]


def test_templates_as_strings_lists_and_files(tmp_path: Path) -> None:
    assert load_hf_chat_template(tmp_path) is None

    def config(**values: Any) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))

    def rendered(**kwargs: Any) -> str:
        template = load_hf_chat_template(tmp_path)
        assert template is not None
        return template.render(MESSAGES, **kwargs)

    config(bos_token="<s>", pad_token={"content": "<p>"}, chat_template="{{ bos_token }}{{ pad_token }}{{ eos_token }}")
    assert rendered() == "<s><p>"
    config(chat_template=[{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t{{ tools[0].a }}"}])
    assert rendered() == "d"
    assert rendered(tools=[{"a": 1}]) == "t1"
    assert rendered(tools=[]) == "d"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "j"}')
    assert rendered() == "j"
    (tmp_path / "chat_template.jinja").write_text("f")
    assert rendered() == rendered(tools=[{"a": 1}]) == "f"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("u")
    assert rendered(tools=[{"a": 1}]) == "u"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b'{"chat_template": 3}', r"tokenizer_config\.json: chat_template is invalid"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}', r"tokenizer_config\.json: chat_template is invalid"),
        ("tokenizer_config.json", b'{"chat_template": "{{"}', r"tokenizer_config\.json: the chat template is invalid at line 1"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja: not UTF-8"),
        ("chat_template.jinja", b" " * (4 << 20) + b"x", r"chat_template\.jinja: more than"),
    ],
)
def test_broken_templates(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_hf_chat_template(tmp_path)
