"""Models by URL from a server on the loopback address, through every fault it can have; and the cache they lie in."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.weights import ALIASES, CachedModel, PullError, http, list_models, pull, remove_model, resolve
from octavo.weights.specification import parse

from .serving import GGUF, Reports, Site, files_in, serving

SHA256 = hashlib.sha256(GGUF).hexdigest()


@pytest.fixture
def site(cache: Path) -> Iterator[Site]:
    """A server with one model, beside an empty cache; failed downloads are tried again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "RETRY_S", 0.0)
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


def test_a_server_that_is_not_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.weights.http.RETRY_S", 0.01)
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
