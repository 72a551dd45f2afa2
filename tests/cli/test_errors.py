"""What goes wrong is said in one sentence on stderr, with exit code 2 and no traceback, unless ``--debug`` asks for it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from octavo.cli import main
from octavo.cli.run import EXIT_FAULT, RunState, report


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["frobnicate"], "frobnicate"),
        (["serv"], "'serve'"),
        (["serve", "--prot", "9"], "--prot"),
        (["serve", "--port", "http"], "--port"),
        (["serve", "--port", "70000"], "70000"),
        (["serve", "no-such-model"], "no-such-model"),
        (["serve", "--max-num-seqs", "0"], "max_num_seqs=0"),
        (["serve", "--memory-fraction", "1.5"], "memory_fraction=1.5"),
        (["serve", "--kv-cache-memory-bytes", "3XB"], "3XB"),
        (["serve", "--kv-cache-dtype", "fp8"], "fp8"),
        (["generate"], "PROMPT"),
        (["generate", "   "], "empty"),
        (["generate", "Hi", "--temperature", "-1"], "temperature=-1"),
        (["generate", "Hi", "--top-p", "0"], "top_p=0"),
        (["generate", "Hi", "--raw", "--system", "Be brief."], "--system"),
        (["generate", "Hi", "--model", "no/such/file.gguf"], "no/such/file.gguf"),
        (["chat", "no-such-model"], "no-such-model"),
        (["chat", "--temperature", "-1"], "temperature=-1"),
        (["chat", "--max-num-seqs", "2"], "--max-num-seqs"),
        (["inspect", "modle"], "modle"),
        (["inspect", "model", "--quantization", "int3"], "int3"),
        (["rm"], "NAME"),
        (["rm", "--yes", "no-such-model"], "no-such-model"),
        (["pull", "no-such-model"], "no-such-model"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert expected in err
    assert "Traceback" not in err


def test_a_file_that_is_no_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "letter.gguf"
    path.write_text("Dear all,\n" * 100)
    assert main(["generate", "Hi", "--model", str(path)]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "letter.gguf" in err


def test_a_port_in_use_is_known_before_the_model_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "no-such-model", "--port", str(port)]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert str(port) in err
    assert "no-such-model" not in err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="no-such-model"):
        main(["pull", "no-such-model", "--debug"])


def test_a_fault_of_ours_is_called_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert report(KeyError("rows"), RunState()) == EXIT_FAULT
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "internal error: KeyError" in err
    assert "--debug" in err


def test_no_arguments_show_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "octavo serve" in capfd.readouterr().out
