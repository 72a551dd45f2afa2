"""The safetensors reader: what it reads, and what it refuses by name without a crash or a large allocation."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from octavo.weights import TensorType, dequantize
from octavo.weights.safetensors import MAX_HEADER_BYTES, SafetensorsFile

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(path: Path, data: bytes) -> Path:
    (path / "model.safetensors").write_bytes(data)
    return path / "model.safetensors"


def test_reads_all_supported_types(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    f32, f16 = rng.standard_normal((2, 3, 4), np.float32), rng.standard_normal(5).astype(np.float16)
    bf16 = rng.integers(0, 2**15, (3, 2), np.uint16)
    scalar = np.array(7.5, np.float32)
    arrays = {"a": ("F32", f32), "b": ("F16", f16), "c.é": ("BF16", bf16), "scalar": ("F32", scalar)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "x": 'a "}" {'}}
    data = b""
    for name, (dtype, array) in arrays.items():
        header[name] = entry(dtype, array.shape, (len(data), len(data) + array.nbytes))
        data += array.tobytes()
    text = json.dumps(header, indent=1)
    path = write(tmp_path, file_of(text + " " * (-len(text) % 8), data))
    file = SafetensorsFile(path)
    assert dict(file.metadata) == header["__metadata__"]
    assert list(file.tensors) == list(arrays)
    for name, (dtype, array) in arrays.items():
        tensor = file.tensors[name]
        assert (tensor.name, tensor.type, tensor.shape) == (name, TensorType[dtype], array.shape)
        assert tensor.data.tobytes() == array.tobytes()
        assert tensor.num_bytes == array.nbytes
        assert not tensor.data.flags.owndata
        assert not tensor.data.flags.writeable
    np.testing.assert_array_equal(dequantize(file.tensors["a"]), f32)
    np.testing.assert_array_equal(dequantize(file.tensors["c.é"]), (bf16.astype(np.uint32) << 16).view(np.float32))
    assert dequantize(file.tensors["scalar"]) == scalar
    data_kept = file.tensors["a"].data
    del file
    assert data_kept.tobytes() == f32.tobytes()


def test_no_tensors(tmp_path: Path) -> None:
    assert list(SafetensorsFile(write(tmp_path, file_of("{}  "))).tensors) == []


@pytest.mark.parametrize(("dtype", "shape", "num_bytes"), [("I64", (1,), 8), ("F8_E4M3", (2, 2), 4), ("BOOL", (3,), 3), ("F4", (4,), 2)])
def test_other_types_are_refused_when_needed(tmp_path: Path, dtype: str, shape: tuple[int, ...], num_bytes: int) -> None:
    header = {"x": entry(dtype, shape, (0, num_bytes)), "y": entry(offsets=(num_bytes, num_bytes + 8)), "z": entry("F16", (0, 4), (0, 0))}
    path = write(tmp_path, file_of(header, bytes(num_bytes + 8)))
    file = SafetensorsFile(path)
    assert list(file.tensors) == ["x", "y", "z"]
    assert file.tensors["y"].shape == (2,)
    with pytest.raises(
        ValueError, match=f"the tensor 'x' has the dtype {dtype}, which is not supported; supported are F32, F16, BF16"
    ) as caught:
        file.tensors["x"]
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(ValueError, match=r"the tensor 'z' has the shape \[0, 4\]: it has no elements"):
        file.tensors["z"]


HUGE = 2**64 - 1
BROKEN = {
    "empty": (b"", "not a safetensors file: it has 0 bytes"),
    "short": (b"\2\0\0\0\0\0\0\0{", "not a safetensors file: it has 9 bytes"),
    "header past the end": (file_of("{}", length=100), "or truncated: it claims a header of 100 bytes and has 10"),
    "header length": (file_of("{}", length=HUGE), f"it claims a header of {HUGE} bytes"),
    "a pickle": (b"\x80\x02}q\x00X\x05\x00\x00\x00model", "or truncated: it claims a header of"),
    "no object": (file_of("[]"), r"the header is not valid JSON of this format at character 0: \{ expected, not '\['"),
    "no JSON": (file_of("{x}"), 'the header is not valid JSON of this format at character 1: " expected'),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "the header is not UTF-8"),
    "unfinished": (file_of('{"a"'), "the header is not valid JSON of this format at character 4: : expected, not ''"),
    "unfinished string": (file_of('{"a: 1}'), "the header is not valid JSON: Unterminated string"),
    "trailing": (file_of('{} {"a": 1}'), "the header goes on after its object, at character 3"),
    "no separator": (file_of('{"__metadata__": {} "a": 1}'), "the header is not valid JSON of this format"),
    "value is no object": (file_of({"a": 1}), r"the tensor 'a' is not valid JSON of this format at character 6: \{ expected, not '1'"),
    "value is nested": (file_of({"a": {"b": {"c": 1}}}), "the tensor 'a' is not valid JSON"),
    "value is deep": (file_of('{"a": {"b": ' + "[" * 900 + "}"), "the tensor 'a' is not valid JSON"),
    "value is long": (file_of('{"a": {"shape": [' + "1," * 2000 + "1]}}"), "the tensor 'a' has an entry of more than 1024 characters"),
    "value without end": (file_of('{"a": {"dtype": "F32"'), "the tensor 'a' has an entry of more than 1024 characters or without an end"),
    "metadata no strings": (file_of({"__metadata__": {"a": 1}}), "__metadata__ 'a' is not valid JSON of this format"),
    "metadata deep": (file_of('{"__metadata__": ' + "[" * 100_000), r"__metadata__ is not valid JSON of this format .* expected, not '\['"),
    "metadata twice": (file_of('{"__metadata__": {"a": "b"}, "__metadata__": {}}'), "'__metadata__' occurs twice"),
    "tensor twice": (
        file_of('{"t": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "t": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'),
        "the tensor 't' occurs twice",
    ),
    "key twice": (file_of('{"t": {"dtype": "U8", "dtype": "U8"}}'), "the tensor 't' is not valid JSON: a key occurs twice"),
    "no dtype": (file_of({"t": {}}), "the tensor 't' has the dtype None, which the format does not have"),
    "unknown dtype": (file_of({"t": entry("F31")}, bytes(8)), "the tensor 't' has the dtype 'F31', which the format does not have"),
    "dtype a list": (file_of({"t": entry(["F32"])}, bytes(8)), r"the tensor 't' has the dtype \['F32'\]"),
    "no shape": (file_of({"t": entry(shape=None)}, bytes(8)), "the tensor 't' has the shape None"),
    "negative shape": (file_of({"t": entry(shape=[-1, -2])}, bytes(8)), r"the tensor 't' has the shape \[-1, -2\]"),
    "shape of floats": (file_of({"t": entry(shape=[2.0])}, bytes(8)), r"the tensor 't' has the shape \[2.0\]"),
    "shape of bools": (file_of({"t": entry(shape=[True])}, bytes(4)), r"the tensor 't' has the shape \[True\]"),
    "nine dimensions": (file_of({"t": entry(shape=[1] * 9, offsets=[0, 4])}, bytes(4)), "must be a list of up to 8 sizes"),
    "shape overflows": (file_of({"t": entry(shape=[2**62, 4])}, bytes(8)), "takes 73786976294838206464 bytes, and its data_offsets give 8"),
    "huge sizes": (file_of('{"t": {"dtype": "F32", "shape": [1' + "0" * 400 + ']}}'), "the tensor 't' has the shape"),
    "three offsets": (file_of({"t": entry(offsets=[0, 4, 8])}, bytes(8)), "they must be two byte positions"),
    "offsets backwards": (file_of({"t": entry(offsets=[8, 0])}, bytes(8)), "the tensor 't' lies at bytes 8 to 0 of the data, of which"),
    "past the end": (file_of({"t": entry(offsets=[0, 8])}, bytes(7)), "'t' lies at bytes 0 to 8 of the data, of which there are 7"),
    "far past the end": (file_of({"t": entry(offsets=[2**62, 2**62 + 8])}, bytes(8)), "the tensor 't' lies at bytes 4611686018427387904"),
    "size": (file_of({"t": entry(shape=[3])}, bytes(8)), r"'t' of type F32 and shape \[3\] takes 12 bytes, and its data_offsets give 8"),
    "overlap": (file_of({"t": entry(), "u": entry(offsets=[4, 12])}, bytes(12)), "the tensors 't' and 'u' overlap"),
    "the same place": (file_of({"t": entry(), "u": entry()}, bytes(8)), "the tensors 't' and 'u' overlap"),
    "hole": (file_of({"t": entry(), "u": entry(offsets=[12, 20])}, bytes(20)), "bytes 8 to 12 of the data belong to no tensor"),
    "hole at the end": (file_of({"t": entry()}, bytes(9)), "bytes 8 to 9 of the data belong to no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    data, message = BROKEN[case]
    path = write(tmp_path, data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            SafetensorsFile(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 600
    assert peak_bytes < 2_000_000


def test_a_header_that_is_too_long(tmp_path: Path) -> None:
    path = write(tmp_path, file_of("{}", length=MAX_HEADER_BYTES + 1))
    with open(path, "r+b") as file:
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse
    with pytest.raises(ValueError, match=f"at most {MAX_HEADER_BYTES} are accepted"):
        SafetensorsFile(path)


@pytest.fixture(scope="module")
def sound() -> bytes:
    header = {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("BF16", (2, 3), (8, 20)), "c": entry("I32", (1,), (20, 24))}
    return file_of(header, bytes(range(24)))


def opens_or_refuses(path: Path) -> None:
    try:
        file = SafetensorsFile(path)
        for name in file.tensors:
            with np.errstate(all="ignore"):
                assert dequantize(file.tensors[name]).shape == file.tensors[name].shape
    except ValueError as error:
        if not str(error).startswith(f"{path}: "):
            raise


def test_every_truncation_is_refused(sound: bytes, tmp_path: Path) -> None:
    for end in range(len(sound)):
        with pytest.raises(ValueError, match=r"model\.safetensors: "):
            SafetensorsFile(write(tmp_path, sound[:end]))


@FUZZ
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes(sound: bytes, tmp_path: Path, changes: list[tuple[float, int]]) -> None:
    data = bytearray(sound)
    for where, byte in changes:
        data[int(where * len(data))] = byte
    opens_or_refuses(write(tmp_path, bytes(data)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.sampled_from(["F32", "BF16", "U8"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
CLAIMS = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "U8"]) | JSON, "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
     "data_offsets": st.tuples(st.integers(0, 30), st.integers(0, 30)) | JSON}
)  # fmt: skip


@FUZZ
@given(header=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), CLAIMS | JSON, max_size=4) | JSON, size=st.integers(0, 30))
@example(header={"\ud800": entry("F31")}, size=8)
def test_any_header(tmp_path: Path, header: Any, size: int) -> None:
    opens_or_refuses(write(tmp_path, file_of(header, bytes(size))))


@FUZZ
@given(header=st.text(alphabet='{}[]:,"\\u0d8 aF32', max_size=60))
def test_any_text(tmp_path: Path, header: str) -> None:
    opens_or_refuses(write(tmp_path, file_of(header)))


def test_the_header_of_a_large_model_is_read_quickly(tmp_path: Path) -> None:
    header = {f"model.layers.{i // 12}.self_attn.q_proj{i % 12}.weight": entry(offsets=(i * 8, i * 8 + 8)) for i in range(5000)}
    file = SafetensorsFile(write(tmp_path, file_of(header, bytes(8 * 5000))))
    assert len(file.tensors) == 5000
