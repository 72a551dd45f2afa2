"""``octavo inspect``: what it says of a model is what others find in the file and what loading it takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest

from octavo.cli import main
from octavo.cli.listing import listing
from octavo.config import KVDType
from octavo.llm import LLM
from octavo.models import build_program
from octavo.weights import open_checkpoint
from tests.cli.running import octavo
from tests.weights.conftest import write_gguf

TINY = str(Path(__file__).parents[1] / "weights" / "data" / "tiny_llama")


def facts(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["inspect", "model", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


@pytest.mark.parametrize("quantization", [None, "int8", "int8-channel", "int4"])
def test_the_memory_is_what_loading_takes(quantization: Any, capfd: pytest.CaptureFixture[str]) -> None:
    flags = () if quantization is None else ("--quantization", quantization)
    memory = facts(capfd, TINY, *flags)["memory"]
    for kv_dtype in get_args(KVDType):
        with LLM(TINY, quantization=quantization, kv_cache_dtype=kv_dtype, kv_cache_memory_bytes=1 << 20, num_threads=1) as llm:
            executable = llm.engine.model.executable
            assert memory["packed_weight_bytes"] == pytest.approx(executable.weight_bytes, rel=0.02)
            block_bytes = executable.kv_block_bytes
        assert memory["kv_bytes_per_1000_tokens"][kv_dtype] == 1000 * block_bytes // 16
        assert memory["kv_bytes_of_full_context"][kv_dtype] == 256 * block_bytes // 16
    assert memory["context_length"] == 256


@pytest.mark.model
def test_smollm2_beside_the_gguf_package(smollm2_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = facts(capfd, "smollm2-135m-instruct")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_path).tensors}
    assert found["path"] == str(smollm2_path)
    assert found["num_tensors"] == len(theirs)
    assert found["num_parameters"] == sum(int(tensor.n_elements) for tensor in theirs.values())
    for tensor in found["tensors"]:
        their = theirs[tensor["name"]]
        assert (tensor["type"], tensor["bytes"]) == (their.tensor_type.name, their.n_bytes)
        assert tensor["shape"] == [int(n) for n in reversed(their.shape)]
        assert tensor["bits_per_weight"] == 8 * their.n_bytes / their.n_elements
    assert {row["type"]: row["tensors"] for row in found["types"]} == {"Q4_1": 210, "Q8_0": 1, "F32": 61}
    assert sum(row["bytes"] for row in found["types"]) == sum(int(tensor.n_bytes) for tensor in theirs.values())
    assert found["hyperparameters"]["block_count"] == 30
    assert found["tokenizer"]["kind"] == "gpt2, pre-tokenizer smollm"
    assert found["tokenizer"]["eos"] == {"id": 2, "token": "<|im_end|>"}
    assert "<|im_start|>" in found["chat_template"]["text"]
    with LLM("smollm2-135m-instruct", kv_cache_memory_bytes=64 << 20) as llm:
        assert found["memory"]["packed_weight_bytes"] == pytest.approx(llm.engine.model.executable.weight_bytes, rel=0.02)


def test_a_directory_for_people() -> None:
    done = octavo("inspect", "model", TINY, "--tensors")
    assert done.returncode == 0, done.stderr
    for expected in (TINY, "43,332 in 21 tensors", "BF16", "16 bits per weight", "block_count = 2", "BPE (tokenizer.json), 288 tokens"):
        assert expected in done.stdout
    assert re.search(r"^memory +\d+ kB of packed weights$", done.stdout, re.MULTILINE)
    assert re.search(r"blk\.1\.ffn_down\.weight +BF16 +4,096 bytes +64 × 32$", done.stdout, re.MULTILINE)


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.gguf"
    tensors = {"whole": ("I32", np.zeros((2, 4), np.int32)), "fine": ("F16", np.zeros((2, 32), np.float16))}
    write_gguf(path, {"llama.block_count": 1}, tensors)
    found = facts(capfd, str(path))
    assert list(found["unreadable"]) == ["whole"]
    assert "I32" in found["unreadable"]["whole"]
    assert [tensor["name"] for tensor in found["tensors"]] == ["fine"]
    assert found["num_tensors"] == 2
    assert not found["supported"]
    assert "embedding_length" in found["unsupported_because"]
    assert found["memory"] is None
    assert "error" in found["tokenizer"]
    assert found["chat_template"] is None
    assert main(["inspect", "model", str(path)]) == 0
    shown = capfd.readouterr().out
    assert re.search(r"^unreadable +.*'whole'.*I32", shown, re.MULTILINE)
    assert "cannot run: " in shown
    assert "at least 64 in 2 tensors" in shown


@pytest.mark.parametrize("command", ["model", "program"])
def test_a_mistake_is_one_sentence(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0")
    for model, expected in ((str(broken), "broken.gguf"), ("no-such-model", "no-such-model")):
        assert main(["inspect", command, model]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert expected in err


@pytest.mark.model
def test_the_listing_stands_for_every_operation(smollm2_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = build_program(open_checkpoint(smollm2_path))
    assert listing(program, full=True) == str(program)
    folded = listing(program).splitlines()
    assert len(folded) < 60
    every = str(program).splitlines()[1:]
    left_out = sum(int(n) for n in re.findall(r"like it \((\d+) operations\)", "\n".join(folded)))
    assert sum(line in every for line in folded) + left_out == len(program.ops)
    assert "  layers 1 to 28 are like it (336 operations)" in folded
    assert folded[-2:] == every[-2:]
    assert main(["inspect", "program", str(smollm2_path)]) == 0
    assert capfd.readouterr().out.splitlines() == folded


def test_a_model_of_two_layers_that_differ_is_written_out(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "program", TINY]) == 0
    folded = capfd.readouterr().out.splitlines()
    assert main(["inspect", "program", TINY, "--full"]) == 0
    full = capfd.readouterr().out.splitlines()
    assert [line for line in folded if line in full] == full
    assert main(["inspect", "program", TINY, "--max-model-len", "1"]) == 2
    assert "max_model_len=1" in capfd.readouterr().err
