"""A fingerprint follows every byte of its file, and its memory is never believed once the file has been touched."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from octavo.weights import open_checkpoint


@pytest.fixture
def model(small_gguf: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf.read_bytes())
    return path


def settle(path: Path) -> None:
    """Waits until the file has been still for long enough to be remembered."""
    while time.time_ns() - path.stat().st_ctime_ns < 2_100_000_000:
        time.sleep(0.05)


@pytest.fixture(scope="module")
def still(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that has not been touched for long enough. Tests must not touch it either."""
    path = tmp_path_factory.mktemp("still") / "model.gguf"
    path.write_bytes(small_gguf.read_bytes())
    settle(path)
    return path


def records(cache: Path) -> list[Path]:
    return sorted((cache / "fingerprints").glob("*")) if cache.exists() else []


def test_is_the_beginning_of_the_sha256(model: Path, cache: Path) -> None:
    assert open_checkpoint(model).fingerprint == hashlib.sha256(model.read_bytes()).hexdigest()[:32]


def test_changes_with_metadata_and_with_any_weight(model: Path, cache: Path) -> None:
    data = model.read_bytes()
    seen = {open_checkpoint(model).fingerprint}
    for change in (data.index(b"llama.block_count") + 21, len(data) - 36, data.index(b"general.architecture") + 20 + 12 + 4):
        altered = bytearray(data)
        altered[change] ^= 1
        model.write_bytes(altered)
        seen.add(hashlib.sha256(altered).hexdigest()[:32])
        try:
            assert open_checkpoint(model).fingerprint == hashlib.sha256(altered).hexdigest()[:32]
        except ValueError as error:
            pytest.fail(str(error))
    assert len(seen) == 4


def test_is_remembered(still: Path, cache: Path) -> None:
    fingerprint = open_checkpoint(still).fingerprint
    (record,) = records(cache)
    forged = "0123456789abcdef" * 2
    record.write_text(record.read_text().replace(fingerprint, forged))
    assert open_checkpoint(still).fingerprint == forged, "it was read from the record, not computed"


def test_a_change_is_noticed_even_with_the_old_time(model: Path, cache: Path) -> None:
    settle(model)
    old = open_checkpoint(model).fingerprint
    assert records(cache)
    status = model.stat()
    data = bytearray(model.read_bytes())
    data[-40] ^= 1
    model.write_bytes(data)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_checkpoint(model).fingerprint == hashlib.sha256(data).hexdigest()[:32] != old


def test_a_fresh_file_is_not_remembered(model: Path, cache: Path) -> None:
    os.utime(model)
    assert open_checkpoint(model).fingerprint
    assert records(cache) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"identity": null, "fingerprint": "x"}'])
def test_a_broken_record_is_replaced(still: Path, cache: Path, content: bytes) -> None:
    fingerprint = open_checkpoint(still).fingerprint
    (record,) = records(cache)
    record.write_bytes(content)
    assert open_checkpoint(still).fingerprint == fingerprint
    assert fingerprint.encode() in record.read_bytes()


def test_a_record_with_a_wrong_digest_is_replaced(still: Path, cache: Path) -> None:
    fingerprint = open_checkpoint(still).fingerprint
    (record,) = records(cache)
    record.write_text(record.read_text().replace(fingerprint, "../../x"))
    assert open_checkpoint(still).fingerprint == fingerprint


def test_an_unusable_cache_costs_only_time(still: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_checkpoint(still).fingerprint == hashlib.sha256(still.read_bytes()).hexdigest()[:32]


@pytest.mark.model
def test_smollm2_is_instant_once_known(smollm2_path: Path) -> None:
    open_checkpoint(smollm2_path).fingerprint  # noqa: B018 - computed or recalled
    if time.time_ns() - smollm2_path.stat().st_ctime_ns < 2_100_000_000:
        pytest.skip("the model has only just been fetched")
    start = time.perf_counter()
    checkpoint = open_checkpoint(smollm2_path)
    opened = time.perf_counter()
    assert checkpoint.fingerprint == "b179c9523d0e6a0f98a330c7562b6827"
    assert time.perf_counter() - opened < 0.05
    assert opened - start < 0.5
