"""``octavo generate`` with the default model: right, streamed, and well-behaved at its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.running import COMMAND, environment, octavo

pytestmark = pytest.mark.model

SMALL = ("--kv-cache-memory-bytes", "64MB", "--max-model-len", "2048")


@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.parametrize(("mode", "prompt"), [("--raw", "The capital of France is"), ("--chat", "Name the capital of France.")])
def test_the_capital_of_france(mode: str, prompt: str) -> None:
    done = octavo("generate", prompt, mode, "--temperature", "0", "--max-tokens", "24", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stdout.endswith("\n")
    assert re.fullmatch(r"\d+ tokens, [\d.]+ tok/s, TTFT \d+ ms \(\d+ prompt tokens\)(, cut off by the length limit)?", done.stderr.strip())


@pytest.mark.usefixtures("smollm2_path")
def test_chat_is_the_default_of_a_model_with_a_template_and_the_prompt_may_come_from_stdin() -> None:
    arguments = ("--temperature", "0", "--max-tokens", "12", "--no-stats", *SMALL)
    chat = octavo("generate", "Name a colour.", "--chat", *arguments)
    default = octavo("generate", "-", *arguments, input="Name a colour.")
    raw = octavo("generate", "Name a colour.", "--raw", *arguments)
    assert [done.returncode for done in (chat, default, raw)] == [0, 0, 0]
    assert chat.stdout == default.stdout != raw.stdout
    assert chat.stderr == default.stderr == ""


@pytest.mark.usefixtures("smollm2_path")
def test_a_seed_repeats_and_a_stop_string_stops() -> None:
    arguments = ("generate", "Count: one, two,", "--raw", "--seed", "7", "--max-tokens", "24", "--no-stats", *SMALL)
    first, again = octavo(*arguments), octavo(*arguments)
    assert first.returncode == 0
    assert first.stdout == again.stdout
    text = first.stdout.rstrip("\n")
    stop = text[len(text) // 2 :][:3]
    cut = octavo(*arguments, "--stop", stop)
    assert cut.stdout.rstrip("\n") == text[: text.index(stop)].rstrip("\n")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "generate", *arguments, *SMALL],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


ENDLESS = ("Once upon a time", "--raw", "--ignore-eos", "--max-tokens", "2000", "--temperature", "0")


@pytest.mark.usefixtures("smollm2_path")
def test_ctrl_c_ends_it_cleanly() -> None:
    process = start(*ENDLESS)
    assert process.stdout is not None
    beginning = os.read(process.stdout.fileno(), 1)  # it streams: the first words are here long before the last
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (beginning + rest).endswith(b"\n")
    assert b"Traceback" not in errors
    assert errors.decode().strip().endswith("interrupted")


@pytest.mark.usefixtures("smollm2_path")
def test_a_reader_that_leaves_ends_it_quietly(tmp_path: Path) -> None:
    process = start(*ENDLESS)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    errors = process.stderr.read()
    process.stderr.close()
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors


@pytest.mark.usefixtures("smollm2_path")
def test_a_prompt_longer_than_the_context_is_refused() -> None:
    done = octavo("generate", "word " * 300, "--raw", *SMALL, "--max-model-len", "256")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "256" in done.stderr
