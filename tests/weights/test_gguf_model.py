"""Split GGUF models: whole from any part, refused by name when a part is missing, foreign or broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.weights import TensorType, open_checkpoint
from octavo.weights.gguf_model import part_names

COUNT = 3


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three parts of two tensors each, split by the ``gguf`` package."""
    directory = tmp_path_factory.mktemp("split")
    writer = gguf.GGUFWriter(directory / "model.gguf", "llama", split_max_tensors=2)
    writer.add_uint32("llama.block_count", 7)
    writer.add_token_list(["a", "b"])
    rng = np.random.default_rng(0)
    for index in range(5):
        writer.add_tensor(f"f{index}", rng.standard_normal((2, 8), np.float32))
    writer.add_tensor("k", rng.integers(0, 256, (3, 144), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(directory.glob("*.gguf"))


@pytest.fixture
def copies(parts: list[Path], tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(part, tmp_path)) for part in parts]


def test_any_part_opens_all(parts: list[Path]) -> None:
    assert [part.name for part in parts] == part_names("model-00002-of-00003.gguf")
    expected = {tensor.name: tensor.data.tobytes() for part in parts for tensor in gguf.GGUFReader(part).tensors}
    checkpoints = [open_checkpoint(part) for part in (*parts, parts[0].parent)]
    for checkpoint in checkpoints:
        assert checkpoint.path == parts[0]
        assert checkpoint.architecture == "llama"
        assert checkpoint.metadata["llama.block_count"] == 7
        assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
        assert {name: tensor.data.tobytes() for name, tensor in checkpoint.tensors.items()} == expected
        assert checkpoint.tensors["k"].type is TensorType.Q4_K
        assert checkpoint.tensors["k"].shape == (3, 256)
    assert len({checkpoint.fingerprint for checkpoint in checkpoints}) == 1


def test_the_fingerprint_follows_every_part(copies: list[Path]) -> None:
    seen = {open_checkpoint(copies[0]).fingerprint}
    for part in copies:
        data = bytearray(part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(data)
        seen.add(open_checkpoint(copies[0]).fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 1)])
def test_missing_parts_are_named(copies: list[Path], missing: tuple[int, ...]) -> None:
    for index in missing:
        copies[index].unlink()
    names = ", ".join(copies[index].name for index in missing)
    left = next(part for part in copies if part.exists())
    with pytest.raises(ValueError, match=rf"is one of 3 parts of a split model, of which are missing: {names}$") as caught:
        open_checkpoint(left)
    assert str(caught.value).startswith(f"{left}: ")


def test_a_renamed_part(copies: list[Path]) -> None:
    renamed = copies[0].rename(copies[0].with_name("other.gguf"))
    with pytest.raises(ValueError, match=r"must be called STEM-NNNNN-of-00003\.gguf"):
        open_checkpoint(renamed)
    renamed = renamed.rename(copies[0].with_name("model-00001-of-00004.gguf"))
    with pytest.raises(ValueError, match=r"is one of 3 parts .* must be called STEM-NNNNN-of-00003\.gguf"):
        open_checkpoint(renamed)


def test_parts_in_each_others_place(copies: list[Path]) -> None:
    shutil.copy(copies[1], copies[2])
    with pytest.raises(ValueError, match=r"model-00003-of-00003\.gguf: split\.no=1 does not fit its name, which says 2"):
        open_checkpoint(copies[0])


def change_number(part: Path, key: str, value: int) -> None:
    """Overwrites the number of ``key`` in place."""
    data = bytearray(part.read_bytes())
    at = data.index(key.encode()) + len(key)
    width = {4: 4, 5: 4, 2: 2}[int.from_bytes(data[at : at + 4], "little")]
    data[at + 4 : at + 4 + width] = value.to_bytes(width, "little")
    part.write_bytes(data)


def test_parts_of_different_models(copies: list[Path]) -> None:
    change_number(copies[1], "split.count", 4)
    with pytest.raises(
        ValueError, match=r"00002-of-00003\.gguf: split\.count=4 does not fit its name, which says 3: is it of another model"
    ):
        open_checkpoint(copies[0])
    change_number(copies[1], "split.count", 3)
    change_number(copies[1], "split.tensors.count", 9)
    with pytest.raises(ValueError, match=r"00002-of-00003\.gguf: split\.tensors\.count=9, but the 3 parts hold 6 tensors"):
        open_checkpoint(copies[0])


def test_a_tensor_in_two_parts(copies: list[Path]) -> None:
    data = copies[1].read_bytes()
    copies[1].write_bytes(data.replace(b"\x02\0\0\0\0\0\0\0f2", b"\x02\0\0\0\0\0\0\0f1"))
    with pytest.raises(ValueError, match=r"00002-of-00003\.gguf: the tensor 'f1' is in an earlier part"):
        open_checkpoint(copies[0])


def test_a_broken_part_is_named(copies: list[Path]) -> None:
    copies[2].write_bytes(copies[2].read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"model-00003-of-00003\.gguf: truncated"):
        open_checkpoint(copies[0])


def test_two_models_in_a_directory(copies: list[Path], small_gguf: Path) -> None:
    shutil.copy(small_gguf, copies[0].parent / "another.gguf")
    with pytest.raises(ValueError, match=r"exactly one \.gguf file to be opened; found: another\.gguf, model-00001-of-00003\.gguf"):
        open_checkpoint(copies[0].parent)


NO_PARTS = ["a.gguf", "a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "-00001-of-00002.gguf", "a-1-of-2.gguf", "a-00001-of-99999.gguf"]


@pytest.mark.parametrize("name", NO_PARTS)
def test_names_that_are_no_parts(name: str) -> None:
    assert part_names(name) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(part=st.integers(0, COUNT - 1), opened=st.integers(0, COUNT - 1), where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_flipped_bytes(parts: list[Path], tmp_path: Path, part: int, opened: int, where: float, byte: int) -> None:
    """Whatever stands anywhere in any part: it opens, or is refused with the name of a file of this model."""
    for original in parts:
        shutil.copy(original, tmp_path)
    target = tmp_path / parts[part].name
    data = bytearray(target.read_bytes())
    data[int(where * len(data))] = byte
    target.write_bytes(data)
    try:
        checkpoint = open_checkpoint(tmp_path / parts[opened].name)
        for name in checkpoint.tensors:
            assert checkpoint.tensors[name].num_bytes > 0
    except ValueError as error:
        if not str(error).startswith(f"{tmp_path}/model-0000"):
            raise
