"""The GGUF reader beside the ``gguf`` package, and against broken files."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.weights import Checkpoint, TensorType, dequantize, open_checkpoint

SAME_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def assert_same_as_reference(path: Path) -> None:
    ours, theirs = open_checkpoint(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        expected = field.contents()
        assert ours.metadata[name] == expected, name
        assert type(ours.metadata[name]) is type(expected), name
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.name == tensor.name
        assert mine.type.name == tensor.tensor_type.name
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert mine.num_bytes == tensor.n_bytes
        assert mine.data.dtype == np.uint8
        assert mine.data.ndim == 2
        assert mine.data.tobytes() == tensor.data.tobytes()


def test_reads_what_gguf_wrote(small_gguf: Path) -> None:
    assert_same_as_reference(small_gguf)
    checkpoint = open_checkpoint(small_gguf)
    assert checkpoint.architecture == "llama"
    assert checkpoint.path == small_gguf
    assert checkpoint.tensors["q4_1"].shape == (2, 3, 32)
    assert checkpoint.tensors["q4_1"].data.shape == (6, 20)
    assert checkpoint.tensors["vector"].data.shape == (1, 28)
    assert {tensor.type for tensor in checkpoint.tensors.values()} == set(TensorType) - {TensorType.I8_CHANNEL}


@pytest.mark.model
def test_reads_smollm2(smollm2_path: Path) -> None:
    assert_same_as_reference(smollm2_path)


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1),
)


@SAME_FILE
@given(
    metadata=st.dictionaries(st.text("abc.", min_size=1), VALUES, max_size=5),
    rows=st.integers(1, 4),
    alignment=st.sampled_from([8, 32, 64]),
)
def test_reads_any_metadata(gguf_file: Callable[..., Path], metadata: dict[str, Any], rows: int, alignment: int) -> None:
    tensors = {"a": ("F32", np.ones((rows, 3), np.float32)), "b": ("Q8_0", np.ones((rows, 34), np.uint8))}
    assert_same_as_reference(gguf_file(metadata, tensors, alignment))


def test_tensors_are_views_of_the_map_and_outlive_the_checkpoint(small_gguf: Path) -> None:
    checkpoint = open_checkpoint(small_gguf)
    data = [tensor.data for tensor in checkpoint.tensors.values()]
    expected = [array.copy() for array in data]
    assert not any(array.flags.owndata or array.flags.writeable for array in data)
    del checkpoint
    for array, copy in zip(data, expected, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_mappings_are_read_only(small_gguf: Path) -> None:
    checkpoint = open_checkpoint(small_gguf)
    for mapping in (checkpoint.metadata, checkpoint.tensors):
        with pytest.raises(TypeError):
            mapping["x"] = 1  # type: ignore[index]


def test_version_2_is_read(small_gguf: Path, tmp_path: Path) -> None:
    path = _altered(small_gguf, tmp_path, lambda data: data[:4] + struct.pack("<I", 2) + data[8:])
    assert list(open_checkpoint(path).tensors) == list(open_checkpoint(small_gguf).tensors)


@pytest.mark.model
def test_opening_is_fast(smollm2_path: Path) -> None:
    def once() -> float:
        start = time.perf_counter()
        open_checkpoint(smollm2_path)
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.2


def test_directories(small_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.json or exactly one \.gguf file to be opened; found: none"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.gguf").write_bytes(small_gguf.read_bytes())
    assert open_checkpoint(tmp_path).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(small_gguf.read_bytes())
    with pytest.raises(ValueError, match=r"found: a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "c.gguf")


# Broken files ---------------------------------------------------------------------------------------------------


def _altered(source: Path, directory: Path, change: Callable[[bytes], bytes]) -> Path:
    path = directory / "broken.gguf"
    path.write_bytes(change(source.read_bytes()))
    return path


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


ARCHITECTURE = _pair("general.architecture", 8, _string("llama"))


def _file(
    pairs: list[bytes] | None = None, tensors: list[bytes] | None = None, data: bytes = bytes(4096), *,
    version: int = 3, num_pairs: int | None = None, num_tensors: int | None = None,
) -> bytes:  # fmt: skip
    pairs, tensors = [ARCHITECTURE] if pairs is None else pairs, tensors or []
    counts = (len(tensors) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


HUGE = 2**64 - 1
BROKEN = {
    "empty": (b"", "not a GGUF file: it has 0 bytes"),
    "short": (b"GGUF", "not a GGUF file: it has 4 bytes"),
    "zip": (b"PK\3\4" + bytes(100), "not a GGUF file: it begins with b'PK"),
    "version 1": (_file(version=1), "GGUF version 1 is not supported; versions 2 and 3 are"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(99), "big-endian"),
    "tensor count": (_file(num_tensors=HUGE), f"claims {HUGE} tensors, more than its"),
    "pair count": (_file(num_pairs=2**40), f"claims {2**40} key-value pairs"),
    "pairs missing": (_file(num_pairs=2)[:80], "truncated: the type of '' needs 4 bytes at offset 77, and the file ends at 80"),
    "no architecture": (_file([]), "general.architecture=None is invalid"),
    "architecture of another type": (_file([_pair("general.architecture", 4, bytes(4))]), "general.architecture=0 is invalid"),
    "key twice": (_file([ARCHITECTURE, ARCHITECTURE]), "the metadata key 'general.architecture' occurs twice"),
    "key not UTF-8": (_file([_pair(b"\xff\xfe", 4, bytes(4))]), "the key of metadata pair 0 is not UTF-8"),
    "key length": (_file([struct.pack("<Q", HUGE)]), f"truncated: the key of metadata pair 0 has a string of {HUGE} bytes"),
    "value type": (_file([_pair("x", 13, bytes(8))]), "the value of 'x' has the unknown value type 13"),
    "string length": (_file([_pair("x", 8, struct.pack("<Q", 2**62))]), f"truncated: the value of 'x' has a string of {2**62} bytes"),
    "string not UTF-8": (_file([_pair("x", 8, _string(b"\x80"))]), "the value of 'x' is not UTF-8"),
    "array type": (_file([_pair("x", 9, struct.pack("<IQ", 77, 1))]), "the value of 'x' is an array of the unknown value type 77"),
    "array of arrays": (_file([_pair("x", 9, struct.pack("<IQ", 9, 1))]), "the value of 'x' is an array of arrays"),
    "array count": (_file([_pair("x", 9, struct.pack("<IQ", 4, HUGE))]), f"the value of 'x' claims {HUGE} elements; at most"),
    "array past the end": (_file([_pair("x", 9, struct.pack("<IQ", 12, 4_000_000))]), "truncated: the value of 'x' claims 4000000"),
    "strings past the end": (_file([_pair("x", 9, struct.pack("<IQ", 8, 4_000_000))]), "truncated: the value of 'x' claims 4000000"),
    "string in array": (_file([_pair("x", 9, struct.pack("<IQQ", 8, 1, HUGE))]), "truncated: the value of 'x' has a string of"),
    "alignment": (_file([ARCHITECTURE, _pair("general.alignment", 4, struct.pack("<I", 48))]), "general.alignment=48 is invalid"),
    "no alignment": (_file([ARCHITECTURE, _pair("general.alignment", 4, bytes(4))]), "general.alignment=0 is invalid"),
    "float alignment": (_file([ARCHITECTURE, _pair("general.alignment", 6, struct.pack("<f", 32))]), "general.alignment=32.0 is invalid"),
    "split": (_file([ARCHITECTURE, _pair("split.count", 2, b"\3\0")]), "is one of 3 parts of a split model, which are found by"),
    "split count": (_file([ARCHITECTURE, _pair("split.count", 8, _string("3"))]), "split.count='3' is invalid"),
    "split in too many": (_file([ARCHITECTURE, _pair("split.count", 4, b"\xff" * 4)]), "split.count=4294967295 is invalid: at most"),
    "tensor twice": (_file(tensors=[_tensor("t", (8,), 0, 0), _tensor("t", (8,), 0, 32)]), "the tensor 't' occurs twice"),
    "no dimensions": (_file(tensors=[_tensor("t", (), 0, 0) + bytes(8)]), "the tensor 't' has 0 dimensions"),
    "five dimensions": (_file(tensors=[_tensor("t", (1, 1, 1, 1, 1), 0, 0)]), "the tensor 't' has 5 dimensions"),
    "zero dimension": (_file(tensors=[_tensor("t", (4, 0), 0, 0)]), r"the tensor 't' has the shape \(4, 0\): no dimension may be 0"),
    "huge": (_file(tensors=[_tensor("t", (2**40, 2**40), 0, 0)]), "truncated: the tensor 't' of shape"),
    "overflow": (_file(tensors=[_tensor("t", (2**32, 2**32), 0, 0)]), "truncated: the tensor 't' of shape"),
    "past the end": (_file(tensors=[_tensor("t", (1024,), 0, 32)]), "truncated: the tensor 't' ends at byte"),
    "offset": (_file(tensors=[_tensor("t", (8,), 0, 2**64 - 32)]), "truncated: the tensor 't' ends at byte"),
    "unaligned": (_file(tensors=[_tensor("t", (8,), 0, 4)]), "the tensor 't' lies at offset 4, which is not aligned to 32 bytes"),
    "overlap": (_file(tensors=[_tensor("t", (64,), 0, 0), _tensor("u", (8,), 0, 32)]), "the tensors 't' and 'u' overlap"),
    "half a block": (_file(tensors=[_tensor("t", (2, 48), 8, 0)]), "rows of 48 elements, not a multiple of the 32 in a block of Q8_0"),
    "half a superblock": (_file(tensors=[_tensor("t", (2, 384), 12, 0)]), "rows of 384 elements, not a multiple of the 256 in a block"),
    "unknown type past the end": (_file(tensors=[_tensor("t", (8,), 99, 8192)]), "truncated: the tensor 't' ends at byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    data, message = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            open_checkpoint(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (16, "the tensor 't' has the type IQ2_XXS, which is not supported; supported are F32, F16"),
        (26, "the tensor 't' has the type I32, which is not supported"),
        (28, "the tensor 't' has the type F64, which is not supported"),
        (4, "the tensor 't' has the unknown ggml type 4"),
        (99, "the tensor 't' has the unknown ggml type 99"),
    ],
)
def test_a_type_is_refused_when_the_tensor_is_needed(tmp_path: Path, code: int, message: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(_file(tensors=[_tensor("t", (2**40, 256), code, 0), _tensor("u", (2, 32), 8, 32)]))
    tensors = open_checkpoint(path).tensors
    assert list(tensors) == ["t", "u"]
    assert "t" in tensors
    assert tensors["u"].shape == (2, 32)
    for look_up in (tensors.__getitem__, tensors.get):
        with pytest.raises(ValueError, match=message) as caught:
            look_up("t")
        assert str(caught.value).startswith(f"{path}: ")
    assert tensors.get("v") is None


def test_the_sound_skeleton_of_the_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "sound.gguf"
    path.write_bytes(_file(tensors=[_tensor("t", (8,), 0, 0), _tensor("u", (2, 32), 8, 32)]))
    checkpoint = open_checkpoint(path)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {"t": (8,), "u": (2, 32)}


def test_every_truncation_is_refused(small_gguf: Path, tmp_path: Path) -> None:
    data = small_gguf.read_bytes()
    reader = open_checkpoint(small_gguf)
    path = tmp_path / "truncated.gguf"
    last_needed = data.rindex(reader.tensors["vector"].data.tobytes()) + reader.tensors["vector"].num_bytes
    path.write_bytes(data)
    for end in reversed(range(last_needed)):
        os.truncate(path, end)
        with pytest.raises(ValueError, match=r"truncated\.gguf: "):
            open_checkpoint(path)
    path.write_bytes(data[:last_needed])
    assert list(open_checkpoint(path).tensors) == list(reader.tensors)


def _opens_or_refuses(path: Path) -> None:
    try:
        checkpoint = open_checkpoint(path)
    except ValueError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        return
    for name in checkpoint.tensors:
        try:
            tensor = checkpoint.tensors[name]
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            continue
        with np.errstate(all="ignore"):
            assert dequantize(tensor).shape == tensor.shape


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4), cut=st.floats(0, 1))
def test_flipped_bits(small_gguf: Path, tmp_path: Path, flips: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(small_gguf.read_bytes())
    for where, bit in flips:
        data[int(where * len(data))] ^= 1 << bit
    _opens_or_refuses(_altered(small_gguf, tmp_path, lambda _: bytes(data[: int(len(data) * cut)] if cut < 0.2 else data)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    where=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]),
    width=st.sampled_from([4, 8]),
)
def test_overwritten_numbers(small_gguf: Path, tmp_path: Path, where: float, value: int, width: int) -> None:
    data = bytearray(small_gguf.read_bytes())
    start = int(where * (len(data) - width))
    data[start : start + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    _opens_or_refuses(_altered(small_gguf, tmp_path, lambda _: bytes(data)))


def test_checkpoint_is_a_checkpoint(small_gguf: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(small_gguf)
    assert len(checkpoint.fingerprint) == 32
