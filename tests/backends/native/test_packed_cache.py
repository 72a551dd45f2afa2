"""Packed weights on disk: never other bits, never a reason not to start, never more than their share of the disk."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octavo.backends.base import CompileOptions, Float32Array
from octavo.backends.native import NativeBackend, PackedCache, forget_packed
from octavo.backends.native.packed_layout import plan_layout
from octavo.program import Program
from octavo.weights.tensor import ComputedTensor, Tensor, TensorType

from ...conformance.programs import LittleLlama
from ...conformance.steps import Driver

MODEL = LittleLlama(hidden=256, linear_types=(TensorType.Q4_1, TensorType.Q8_0, TensorType.F16, TensorType.I8_CHANNEL), vocab_size=101)
TOKENS = np.random.default_rng(0).integers(0, MODEL.vocab_size, 40)
MAPPED, COPIED = 0, 1 << 60


@pytest.fixture(params=[MAPPED, COPIED], ids=["mapped", "copied"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PackedCache]:
    yield packed_cache(tmp_path, map_from_bytes=request.param)
    left = [path.name for path in tmp_path.glob("packed/.*")]
    assert left == [], "drafts were left behind"


def packed_cache(tmp_path: Path, **changes: object) -> PackedCache:
    given = {
        "source": Path("/models/m.gguf"),
        "source_fingerprint": "a",
        "weights": "a",
        "directory": tmp_path / "packed",
        "minimum_bytes": 0,
    }
    return PackedCache(**{**given, **changes})  # type: ignore[arg-type]


def logits(
    cache: PackedCache | None, model: LittleLlama = MODEL, tensors: Mapping[str, Tensor] | None = None, dequantize: bool = False
) -> Float32Array:
    program, own = model.build()
    options = CompileOptions(16, "fp16", 64, 64, 256, 2, dequantize)
    own_cache = None if cache is None else replace(cache)  # as every start has its own
    executable = NativeBackend(own_cache).compile(program, own if tensors is None else tensors, options)
    result = Driver(executable).whole(TOKENS).copy()
    executable.close()
    if own_cache is not None:
        own_cache.wait()
    return result


def the_file(cache: PackedCache) -> Path:
    (path,) = cache.directory.glob("*.packed")
    return path


def unreadable(program: Program, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, of which no matrix may be read."""

    def refuse() -> np.ndarray:
        raise AssertionError("a matrix was read although it lies packed in the cache")

    packed = {place.name for place in plan_layout(program, tensors, False).places}
    return {name: ComputedTensor(t.name, t.type, t.shape, refuse) if name in packed else t for name, t in tensors.items()}


@pytest.mark.parametrize("dequantize", [False, True])
def test_the_cache_never_changes_bits_and_spares_reading_the_weights(cache: PackedCache, dequantize: bool) -> None:
    want = logits(None, dequantize=dequantize)
    assert (logits(cache, dequantize=dequantize) == want).all()
    program, tensors = MODEL.build()
    assert (logits(cache, tensors=unreadable(program, tensors), dequantize=dequantize) == want).all()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 4096),
    "empty": lambda path: path.write_bytes(b""),
    "other magic": lambda path: flip(path, 3),
    "other header length": lambda path: flip(path, 8),
    "other table": lambda path: flip(path, 300),
    "a weight": lambda path: flip(path, path.stat().st_size // 2),
    "the digest": lambda path: flip(path, path.stat().st_size - 1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_packed_again(cache: PackedCache, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    want = logits(cache)
    path = the_file(cache)
    sound = path.read_bytes()
    DAMAGES[damage](path)
    with caplog.at_level(logging.WARNING):
        assert (logits(cache) == want).all()
    assert "damaged" in caplog.text
    assert str(path) in caplog.text
    assert path.read_bytes() == sound
    program, tensors = MODEL.build()
    assert (logits(cache, tensors=unreadable(program, tensors)) == want).all()


@pytest.mark.parametrize("record", [None, b"", b"[]", b"{", b'{"identity": "x"}'])
def test_without_its_record_a_file_is_hashed_once_and_used(
    cache: PackedCache, record: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    want = logits(cache)
    beside = the_file(cache).with_suffix(".json")
    sound = json.loads(beside.read_bytes())
    beside.unlink() if record is None else beside.write_bytes(record)
    program, tensors = MODEL.build()
    assert (logits(cache, tensors=unreadable(program, tensors)) == want).all()
    assert caplog.text == ""
    assert json.loads(beside.read_bytes()) == sound


def test_the_record_names_the_model_it_came_from(cache: PackedCache) -> None:
    logits(cache)
    record = json.loads(the_file(cache).with_suffix(".json").read_bytes())
    assert record["source"] == "/models/m.gguf"
    assert record["source_fingerprint"] == "a"
    assert record["bytes"] == the_file(cache).stat().st_size


def test_nothing_else_is_taken_for_these_weights(cache: PackedCache) -> None:
    """Another seed is other weights under the same names: only the fingerprint tells them apart."""
    logits(cache)
    other = replace(MODEL, seed=1)
    for changed, model, dequantize in (
        (replace(cache, weights="b"), other, False),
        (replace(cache, build="2"), other, False),
        (cache, replace(other, linear_types=(TensorType.Q8_0,)), False),
        (cache, replace(other, num_layers=1), False),
        (cache, other, True),
    ):
        changed = replace(changed, source=Path("/models/other.gguf"))
        assert (logits(changed, model, dequantize=dequantize) == logits(None, model, dequantize=dequantize)).all()


def test_many_at_once_pack_and_read_the_same_file(cache: PackedCache) -> None:
    want = logits(None)
    same: list[bool] = []
    threads = [threading.Thread(target=lambda: same.append(bool((logits(cache) == want).all()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 8
    assert (logits(cache) == want).all()
    the_file(cache)


def test_a_cache_that_cannot_be_written_is_a_warning(cache: PackedCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.directory.parent.joinpath("a file").write_bytes(b"")
    want = logits(None)
    assert (logits(replace(cache, directory=cache.directory.parent / "a file" / "packed")) == want).all()
    assert "cannot be kept" in caplog.text or "cannot be read" in caplog.text


def test_a_full_disk_is_a_warning(cache: PackedCache, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files fails like a full disk: where the space is asked for, not later at a page."""
    want = logits(None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
        got = logits(cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (got == want).all()
    assert "cannot be kept" in caplog.text
    assert list(cache.directory.glob("*.packed")) == []


def test_weights_that_cannot_be_packed_leave_nothing(cache: PackedCache) -> None:
    _, tensors = MODEL.build()
    name = next(name for name, tensor in tensors.items() if tensor.type is TensorType.I8_CHANNEL)
    broken = tensors[name].data.copy()
    broken[5, 34:36] = 0xFF, 0x7B  # another scale than the row's first block has
    tensors[name] = replace(tensors[name], data=broken)
    with pytest.raises(ValueError, match=f"tensor '{name}'.*row 5"):
        logits(cache, tensors=tensors)
    assert list(cache.directory.glob("*")) == []


def test_what_a_model_was_before_is_superseded(cache: PackedCache) -> None:
    logits(cache)
    first = the_file(cache)
    logits(replace(cache, weights="a-int8", variant="int8"))
    assert len(list(cache.directory.glob("*.packed"))) == 2, "one path may be packed in several ways"
    changed = replace(cache, source_fingerprint="b", weights="b")
    logits(changed)
    assert the_file(cache) != first
    assert len(list(cache.directory.iterdir())) == 2


def test_the_least_recently_used_make_room(cache: PackedCache) -> None:
    logits(cache)
    size = the_file(cache).stat().st_size
    cache = replace(cache, limit_bytes=3 * size + 100)
    models = {name: replace(cache, source=Path(name), weights=name) for name in "bcd"}
    logits(models["b"])
    logits(models["c"])
    age_all(cache.directory, 3600)
    logits(cache)  # used again: now b and c are older
    logits(models["d"])
    names = sorted(json.loads(path.read_bytes())["source"] for path in cache.directory.glob("*.json"))
    assert len(names) == 3
    assert {"/models/m.gguf", "d"} < set(names)
    logits(replace(cache, limit_bytes=size - 1, source=Path("e"), weights="e"))
    assert len(list(cache.directory.glob("*.packed"))) == 3, "what exceeds the limit alone is not kept"


def age_all(directory: Path, seconds: float) -> None:
    for path in directory.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_packed_weights_outlive_their_model_by_a_week(cache: PackedCache, tmp_path: Path) -> None:
    here = tmp_path / "here.gguf"
    here.write_bytes(b"")
    logits(replace(cache, source=here, weights="here"))
    logits(replace(cache, source=tmp_path / "gone.gguf", weights="gone"))
    age_all(cache.directory, 6 * 24 * 3600)
    logits(replace(cache, source=Path("b"), weights="b"))
    assert len(list(cache.directory.glob("*.packed"))) == 3
    age_all(cache.directory, 8 * 24 * 3600)
    logits(replace(cache, source=Path("c"), weights="c"))
    names = {json.loads(path.read_bytes())["source"] for path in cache.directory.glob("*.json")}
    assert names == {str(here), "c"}


def test_a_model_is_forgotten_with_its_folder(cache: PackedCache, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "one"
    logits(replace(cache, source=folder / "m.gguf", weights="one"))
    logits(replace(cache, source=tmp_path / "models" / "one more" / "m.gguf", weights="two"))
    size = sum(path.stat().st_size for path in cache.directory.glob("*.packed"))
    freed = forget_packed(folder, cache.directory)
    assert freed == size // 2
    left = json.loads(the_file(cache).with_suffix(".json").read_bytes())
    assert left["source"].endswith("one more/m.gguf")
    assert forget_packed(tmp_path / "models" / "one more" / "m.gguf", cache.directory) == freed
    assert list(cache.directory.iterdir()) == []
    assert forget_packed(folder, tmp_path / "nowhere") == 0


def test_small_models_are_not_kept(tmp_path: Path) -> None:
    logits(packed_cache(tmp_path, minimum_bytes=16 << 20))
    assert not (tmp_path / "packed").exists()


def test_drafts_of_writers_that_have_gone_are_removed(cache: PackedCache) -> None:
    cache.directory.mkdir()
    dead, alive, young = (cache.directory / f".{name}.part" for name in ("dead", "alive", "young"))
    for path in (dead, alive, young):
        path.write_bytes(b"x")
    os.utime(dead, (1e9, 1e9))
    with open(alive, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.utime(alive, (1e9, 1e9))
        logits(cache)
        assert {path.name for path in cache.directory.glob(".*")} == {".alive.part", ".young.part"}
    alive.unlink()
    young.unlink()
