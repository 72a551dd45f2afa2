"""Models by specification: what is one, which files make it up, and fetching from packages, URLs and a hub on the loopback address."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.weights import ALIASES, CachedModel, PullError, list_models, pull, remove_model, resolve
from octavo.weights import http as http_module
from octavo.weights.contents import choose_model
from octavo.weights.specification import HubSpecification, PackageSpecification, URLSpecification, parse
from octavo.weights.wheel import announced_bytes

from .serving import Site, serving

GGUF = b"GGUF" + random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(GGUF).hexdigest()
HF_DIRECTORY = {
    "config.json": b"{}", "model.safetensors": random.Random(1).randbytes(50_000), "tokenizer.json": b"{ }", "1_Pooling/config.json": b"[]",
    "README.md": b"#", "pytorch_model.bin": b"pickle",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "RETRY_S", 0.0)


def files_in(cache: Path) -> list[str]:
    """Every file of the models in the cache but locks."""
    return sorted(str(p.relative_to(cache / "models")) for p in (cache / "models").rglob("*") if p.is_file() and p.name != ".lock")


class Reports(list[tuple[int, int]]):
    def __call__(self, done: int, total: int) -> None:
        self.append((done, total))

    def check(self, total: int) -> None:
        assert self[-1] == (total, total)
        assert [done for done, _ in self] == sorted({done for done, _ in self})


# Specifications -------------------------------------------------------------------------------------------------


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


# Which files ----------------------------------------------------------------------------------------------------

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


# URLs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(cache: Path) -> Iterator[Site]:
    with serving(Site({"/m/x.gguf": GGUF})) as site:
        yield site


def test_a_url_is_fetched_once(site: Site, cache: Path) -> None:
    reports, name = Reports(), f"{site.url}/m/x.gguf"
    path = resolve(name, on_progress=reports)
    assert path.read_bytes() == GGUF
    assert path.name == "x.gguf"
    reports.check(len(GGUF))
    folder = path.parent.name
    assert files_in(cache) == [f"{folder}/.source.json", f"{folder}/x.gguf"]
    assert resolve(name) == path
    assert len(site.requests) == 1
    assert list_models() == [CachedModel(name, path, len(GGUF))]


@pytest.mark.parametrize("cuts", [[1_200_000], [0, 0, 1, 1_500_000, 300_000], [2_999_999]])
def test_a_broken_connection_is_resumed(site: Site, cuts: list[int]) -> None:
    site.cut = list(cuts)
    assert pull(f"{site.url}/m/x.gguf#sha256={SHA256}").read_bytes() == GGUF
    offsets = [0 if asked is None else int(asked[6:-1]) for _, _, asked in site.requests]
    assert len(offsets) == len(cuts) + 1
    assert offsets == [sum(cuts[:i]) for i in range(len(offsets))]
    assert len(set(offsets)) > 1


def test_an_interrupted_pull_is_continued(site: Site, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 1_500_000:
            raise KeyboardInterrupt

    name = f"{site.url}/m/x.gguf"
    with pytest.raises(KeyboardInterrupt):
        pull(name, on_progress=interrupt)
    assert list_models() == []
    reports = Reports()
    assert pull(name, on_progress=reports).read_bytes() == GGUF
    assert site.requests[1][2] is not None
    assert reports[0][0] > 1_500_000
    reports.check(len(GGUF))


@pytest.mark.parametrize("change", ["version", "ranges", "none"])
def test_a_changed_file_is_fetched_anew(site: Site, change: str) -> None:
    """Another version on the server, one that knows no ranges, or no versions: the two halves are never mixed."""
    site.cut, site.statuses = [1_000_000], [0, 404]
    if change == "none":
        site.version = None
    with pytest.raises(PullError, match="answers 404"):
        pull(f"{site.url}/m/x.gguf")
    new = b"GGUF" + random.Random(9).randbytes(2_000_000)
    site.files["/m/x.gguf"] = new
    site.version = '"v2"' if change == "version" else site.version
    site.ranges = change != "ranges"
    assert pull(f"{site.url}/m/x.gguf").read_bytes() == new


def test_without_versions_a_digest_allows_to_resume(site: Site) -> None:
    site.version, site.cut = None, [1_000_000]
    assert pull(f"{site.url}/m/x.gguf#sha256={SHA256}").read_bytes() == GGUF
    assert site.requests[1][2] == "bytes=1000000-"


def test_a_download_that_was_whole_already(site: Site, cache: Path) -> None:
    name = f"{site.url}/m/x.gguf#sha256={SHA256}"
    specification = parse(name)
    assert specification is not None
    directory = cache / "models" / specification.folder
    directory.mkdir(parents=True)
    (directory / ".x.gguf.download").write_bytes(GGUF)
    (directory / ".x.gguf.json").write_text(json.dumps({"url": f"{site.url}/m/x.gguf", "version": '"v1"'}))
    assert pull(name).read_bytes() == GGUF
    (directory / "x.gguf").unlink()
    (directory / ".x.gguf.download").write_bytes(GGUF + b"more")
    (directory / ".x.gguf.json").write_text(json.dumps({"url": f"{site.url}/m/x.gguf", "version": '"v1"'}))
    assert pull(name).read_bytes() == GGUF


def test_no_length_and_a_redirect(site: Site) -> None:
    site.length, site.redirects = False, {"/latest.gguf": "/m/x.gguf"}
    reports = Reports()
    assert pull(f"{site.url}/latest.gguf", on_progress=reports).read_bytes() == GGUF
    reports.check(len(GGUF))


def test_passing_faults_are_tried_again(site: Site) -> None:
    site.statuses = [503, 429, 500]
    assert pull(f"{site.url}/m/x.gguf").read_bytes() == GGUF
    assert len(site.requests) == 4


@pytest.mark.parametrize(
    ("change", "fragment", "message"),
    [
        ({"files": {}}, "", "x.gguf answers 404 Not Found"),
        ({"statuses": [503] * 9}, "", "could not be downloaded: .*503.*; the next attempt continues at 0 bytes"),
        ({"files": {"/m/x.gguf": b"<html>"}}, "", "is not a GGUF file: it begins with b'<htm'; nothing was kept"),
        ({"files": {"/m/x.gguf": b""}}, "", "is not a GGUF file: it begins with b''"),
        ({}, "#sha256=" + "0" * 64, f"has the SHA-256 {SHA256}, not the expected 0{{64}}; nothing was kept"),
        ({"redirects": {"/m/x.gguf": "ftp://example.test/x.gguf"}}, "", "redirects to ftp://example.test/x.gguf, which is less safe"),
        ({"redirects": {"/m/x.gguf": "/m/x.gguf"}}, "", "answers 302 .*infinite loop"),
    ],
)
def test_failures_of_a_url_keep_nothing(site: Site, cache: Path, change: dict[str, Any], fragment: str, message: str) -> None:
    for name, value in change.items():
        setattr(site, name, value)
    with pytest.raises(PullError, match=message):
        pull(f"{site.url}/m/x.gguf{fragment}")
    assert files_in(cache) == []
    assert list_models() == []


def test_a_server_that_is_not_there(cache: Path) -> None:
    with serving(Site({})) as site:
        pass
    with pytest.raises(PullError, match=r"could not be downloaded: .*refused"):
        pull(f"{site.url}/x.gguf")


def test_a_full_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))  # type: ignore[attr-defined]
    with pytest.raises(PullError, match=r"takes 3 MB more, and .* has room for 0 MB"):
        pull(f"{site.url}/m/x.gguf")


def test_all_parts_of_a_split_model(site: Site, cache: Path) -> None:
    parts = [b"GGUF" + random.Random(i).randbytes(100_000 * (i + 1)) for i in range(3)]
    site.files = {f"/m/y-{i + 1:05d}-of-00003.gguf": part for i, part in enumerate(parts)}
    site.cut = [100_004, 50_000]
    reports = Reports()
    path = pull(f"{site.url}/m/y-00002-of-00003.gguf?token=1", on_progress=reports)
    assert path.name == "y-00001-of-00003.gguf"
    assert [file.read_bytes() for file in sorted(path.parent.glob("*.gguf"))] == parts
    assert {asked.partition("?")[2] for _, asked, _ in site.requests} == {"token=1"}
    assert reports[-1][0] == reports[-1][1]
    with pytest.raises(PullError, match="one of 3 parts of a model, whose digest"):
        pull(f"{site.url}/m/y-00002-of-00003.gguf#sha256={SHA256}")


def test_concurrent_pulls_of_a_url(site: Site) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(pull(f"{site.url}/m/x.gguf"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 4
    assert len(site.requests) == 1


# The cache ------------------------------------------------------------------------------------------------------


def test_list_and_remove(site: Site, cache: Path) -> None:
    assert list_models() == []
    with pytest.raises(ValueError, match="model='x' is not in the cache, which holds nothing"):
        remove_model("x")
    site.files["/z.gguf"] = GGUF[:1000]
    names = [f"{site.url}/m/x.gguf", f"{site.url}/z.gguf"]
    paths = [pull(name) for name in names]
    assert [model.name for model in list_models()] == names
    assert sum(model.num_bytes for model in list_models()) == len(GGUF) + 1000
    assert remove_model(names[0]) > len(GGUF)
    assert [model.name for model in list_models()] == names[1:]
    assert not paths[0].exists()
    with pytest.raises(ValueError, match=r"is not in the cache, which holds http://127.*/z\.gguf$"):
        remove_model(names[0])
    assert pull(names[0]).read_bytes() == GGUF
    with pytest.raises(ValueError, match="is not in the cache"):
        remove_model("../..")
    with pytest.raises(ValueError, match="is not in the cache"):
        remove_model("smollm2-135m-instruct")


def test_aliases_are_listed_and_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (ALIASES["smollm2-135m-instruct"],)
    directory = cache / "models" / source.alias
    directory.mkdir(parents=True)
    path = directory / source.files[0].name
    with open(path, "wb") as file:
        file.truncate(source.files[0].num_bytes - 1)
    assert list_models() == [], "not whole"
    with open(path, "ab") as file:
        file.truncate(source.files[0].num_bytes)
    assert list_models() == [CachedModel(source.alias, path, source.files[0].num_bytes)]
    assert remove_model(source.alias) == source.files[0].num_bytes
    assert list_models() == []
    assert not path.exists()


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"{}", b'{"name": 1, "files": {}, "opened": null}', b'{"name": "x", "files": [1], "opened": null}']
)
def test_a_broken_manifest_means_not_there(site: Site, cache: Path, manifest: bytes) -> None:
    path = pull(f"{site.url}/m/x.gguf")
    (path.parent / ".source.json").write_bytes(manifest)
    assert list_models() == []
    assert pull(f"{site.url}/m/x.gguf") == path
    assert len(list_models()) == 1


def test_a_damaged_model_is_fetched_again(site: Site) -> None:
    path = pull(f"{site.url}/m/x.gguf")
    path.unlink()
    assert list_models() == []
    assert pull(f"{site.url}/m/x.gguf").read_bytes() == GGUF


# Packages -------------------------------------------------------------------------------------------------------

Wheel = Callable[..., None]


@pytest.fixture
def wheel(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """Makes a wheel that pip finds without a network."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)

    def make(files: dict[str, bytes], record: dict[str, str] | None = None) -> None:
        info = "octavo_weights-1.0.dist-info"
        contents = {
            **files,
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: octavo-weights\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        digests = {n: base64.urlsafe_b64encode(hashlib.sha256(d).digest()).decode().rstrip("=") for n, d in contents.items()} | (
            record or {}
        )
        with zipfile.ZipFile(wheels / "octavo_weights-1.0-py3-none-any.whl", "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
            archive.writestr(f"{info}/RECORD", "".join(f"{n},sha256={digests[n]},{len(d)}\n" for n, d in contents.items()))

    return make


def test_a_package_with_one_model(wheel: Wheel, cache: Path, tmp_path: Path) -> None:
    wheel({"p/x.gguf": GGUF, "p/__init__.py": b""})
    reports = Reports()
    path = resolve("pypi:octavo-weights==1.0", on_progress=reports)
    assert path.read_bytes() == GGUF
    assert files_in(cache) == ["pypi--octavo-weights--1.0/.source.json", "pypi--octavo-weights--1.0/x.gguf"]
    reports.check((tmp_path / "wheels" / "octavo_weights-1.0-py3-none-any.whl").stat().st_size)
    shutil.rmtree(tmp_path / "wheels")
    assert resolve("pypi:octavo-weights==1.0") == path
    assert list_models() == [CachedModel("pypi:octavo-weights==1.0", path, len(GGUF))]
    remove_model("pypi:octavo-weights==1.0")
    assert files_in(cache) == []


def test_a_package_with_a_directory(wheel: Wheel, cache: Path) -> None:
    wheel({f"p/model/{name}": data for name, data in HF_DIRECTORY.items()} | {"p/x.gguf": GGUF})
    path = pull("pypi:octavo-weights==1.0:p/model")
    assert path.is_dir()
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")}
    assert found == {name: HF_DIRECTORY[name] for name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")}
    assert pull("pypi:octavo-weights==1.0:p/x.gguf").read_bytes() == GGUF


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({"x.txt": b""}, "pypi:octavo-weights==1.0", "octavo-weights==1.0 cannot be used as a model: it holds no model that can be read"),
        ({"a.gguf": b"", "b.gguf": b""}, "pypi:octavo-weights==1.0", "it holds several models; there are: a.gguf, b.gguf"),
        ({"a.gguf": b""}, "pypi:octavo-weights==1.0:c.gguf", "it holds no model 'c.gguf'; there are: a.gguf"),
        ({"a.gguf": b""}, "pypi:octavo-weights==2.0", r"pip could not download octavo-weights==2\.0 .*: ERROR"),
        ({"../../evil.gguf": b"GGUF"}, "pypi:octavo-weights==1.0", "it holds no model that can be read"),
    ],
)
def test_failures_of_a_package_keep_nothing(wheel: Wheel, cache: Path, files: dict[str, bytes], name: str, message: str) -> None:
    wheel(files)
    with pytest.raises(PullError, match=message):
        pull(name)
    assert files_in(cache) == []


def test_a_file_that_the_record_does_not_vouch_for(wheel: Wheel, cache: Path) -> None:
    wheel({"x.gguf": GGUF}, record={"x.gguf": base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")})
    with pytest.raises(PullError, match=rf"x\.gguf in octavo-weights==1\.0 has the SHA-256 {SHA256}, not the expected 0{{64}}"):
        pull("pypi:octavo-weights==1.0")
    assert files_in(cache) == []


def test_without_pip(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PullError, match=r"needs pip, .* or unpack the package octavo-weights==1\.0 yourself"):
        pull("pypi:octavo-weights==1.0")


def test_pips_announcements() -> None:
    log = "Collecting x==1.0\n  Downloading x-1.0-py3-none-any.whl ({})\nSaved ./x.whl\n"
    assert [announced_bytes(log.format(size)) for size in ("92.9 MB", "1.2 GB", "512 kB", "17 bytes")] == [
        92_900_000,
        1_200_000_000,
        512_000,
        0,
    ]
    assert announced_bytes("  Using cached x-1.0-py3-none-any.whl (3.5 MB)") == 3_500_000
    assert announced_bytes("Collecting x") == 0


# The hub --------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving(Site({}, hub={"repository": "org/name", "commit": COMMIT})) as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500_000)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield site


def test_a_repository_with_one_file(hub: Site, cache: Path) -> None:
    hub.files = {"/x-Q4_K_M.gguf": GGUF, "/README.md": b"#"}
    reports = Reports()
    path = resolve("hf:org/name", on_progress=reports)
    assert path.read_bytes() == GGUF
    assert files_in(cache) == ["hf--org--name/.source.json", "hf--org--name/x-Q4_K_M.gguf"]
    reports.check(len(GGUF))
    assert len(reports) >= 6
    before = len(hub.requests)
    assert resolve("hf:org/name") == path
    assert len(hub.requests) == before, "nothing is asked that is known"
    assert list_models() == [CachedModel("hf:org/name", path, len(GGUF))]
    remove_model("hf:org/name")
    assert files_in(cache) == []


def test_a_repository_that_is_a_directory(hub: Site, cache: Path) -> None:
    hub.files = {f"/{name}": data for name, data in HF_DIRECTORY.items()} | {"/.source.json": b"{}"}
    path = pull("hf:org/name@main")
    assert path.is_dir()
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")}
    assert found == {name: HF_DIRECTORY[name] for name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")}
    assert any("/revision/main" in asked for _, asked, _ in hub.requests)
    assert not any("pytorch_model" in asked for _, asked, _ in hub.requests)


def test_one_file_of_a_repository(hub: Site) -> None:
    hub.files = {"/sub/a.gguf": b"GGUFa", "/sub/b.gguf": b"GGUFb"}
    assert pull("hf:org/name:sub/b.gguf").read_bytes() == b"GGUFb"
    with pytest.raises(
        PullError, match=r"hf:org/name cannot be used as a model: it holds several models; there are: sub/a\.gguf, sub/b\.gguf"
    ):
        pull("hf:org/name")


def test_a_failed_hub_download_is_continued(hub: Site, cache: Path) -> None:
    """The first of two parts is there; the second fails once, and only it is asked for again."""
    parts = {f"/y-{i + 1:05d}-of-00002.gguf": b"GGUF" + random.Random(i).randbytes(200_000) for i in range(2)}
    hub.files, hub.withheld = parts, {"/y-00002-of-00002.gguf"}
    with pytest.raises(PullError, match=r"hf:org/name: y-00002-of-00002\.gguf could not be downloaded: .*404"):
        pull("hf:org/name")
    assert list_models() == []
    hub.withheld, hub.requests = set(), []
    path = pull("hf:org/name")
    assert path.name == "y-00001-of-00002.gguf"
    assert [file.read_bytes() for file in sorted(path.parent.glob("*.gguf"))] == list(parts.values())
    assert not [asked for method, asked, _ in hub.requests if method == "GET" and "y-00001" in asked]


def test_a_file_that_is_not_what_the_hub_said(hub: Site, cache: Path) -> None:
    hub.files = {"/x.gguf": GGUF}
    hub.hub["sha256"] = "0" * 64  # type: ignore[index]
    with pytest.raises(PullError, match=rf"hf:org/name: x\.gguf has the SHA-256 {SHA256}, not the expected 0{{64}}; it was not kept"):
        pull("hf:org/name")
    assert list_models() == []
    assert not list((cache / "models").rglob("*.gguf"))


def test_no_such_repository(hub: Site) -> None:
    with pytest.raises(PullError, match=r"hf:org/other could not be looked up: .*404"):
        pull("hf:org/other")


def test_without_the_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PullError, match=r"fetching hf:org/name needs the package huggingface_hub .*pip install 'octavo\[hf\]'"):
        pull("hf:org/name")
