"""``octavo chat`` as a person and as a script meets it: in a terminal, and through a pipe."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import COMMAND, environment, octavo
from tests.cli.terminal import CTRL_C, CTRL_D, PASTE, terminal

TINY = str(Path(__file__).parents[1] / "weights" / "data" / "tiny_llama")
SMALL = ("--kv-cache-memory-bytes", "64MB", "--max-model-len", "2048")
STATS = r"\[(\d+) tokens?(, [\d.]+ tok/s)?, TTFT \d+ ms \((\d+) prompt tokens(, (\d+) of them cached)?\)(, [\w ]+)?\]"


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    with terminal("chat", "--temperature", "0", "--max-tokens", "24", *SMALL, XDG_STATE_HOME=str(tmp_path)) as t:
        t.expect(r"smollm2-135m-instruct, context of 2,048 tokens\. /help lists the commands")
        t.prompt()
        t.line("Name the capital of France.")
        t.expect("The capital of France is Paris")
        first = t.expect(STATS)
        assert first[5] is None
        t.prompt()
        t.line("And of Italy?")
        t.expect("Rome")
        second = t.expect(STATS)
        assert int(second[3]) > int(first[3])
        assert int(second[5]) >= 16 * (int(first[3]) // 16)  # the first prompt's whole blocks were there already
        t.prompt()
        t.line(f"/save {saved}")
        t.expect("2 turns saved")
        t.prompt()
        t.send(CTRL_D)
        assert t.wait() == 0
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[1]["content"] == "The capital of France is Paris."
    history = tmp_path / "octavo" / "chat_history"
    assert "Name the capital of France." in history.read_text().splitlines()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_ctrl_c_stops_the_answer_keeps_its_beginning_and_frees_its_blocks(tmp_path: Path) -> None:
    arguments = ("--temperature", "0", "--ignore-eos", "--max-tokens", "1000", *SMALL)
    with terminal("chat", *arguments, XDG_STATE_HOME=str(tmp_path)) as t:
        t.prompt()
        t.line("Tell me a story.")
        t.expect("Tell me a story")  # the echo
        t.expect(r"\w+ \w+ \w+")
        t.send(CTRL_C)
        assert t.expect(STATS)[6] == ", interrupted"
        t.prompt()
        t.line("/stats")
        t.expect(r"turns +1\n")
        t.expect(r", 0 in use")
        t.prompt()
        t.send(CTRL_C)
        t.expect("Ctrl-C again")
        t.prompt()
        t.line("/undo")
        t.expect("taken back: Tell me a story")
        t.prompt()
        t.line("Another one.")
        t.expect("Another one")
        t.expect(r"\w+ \w+ \w+")
        t.send(CTRL_C)
        t.expect("interrupted")
        t.prompt()
        t.send(CTRL_C)  # the second one leaves
        assert t.wait() == 0
        assert "Traceback" not in t.text


def test_lines_and_commands_in_a_terminal(tmp_path: Path) -> None:
    saved = tmp_path / "two words.json"
    path = shlex.quote(str(saved)).strip("'")
    with terminal("chat", TINY, "--max-tokens", "2", "--ignore-eos", "--seed", "1", XDG_STATE_HOME=str(tmp_path)) as t:
        t.prompt()
        t.line("first\\")
        t.expect("… ")
        t.line("second")
        t.expect(STATS)
        t.prompt()
        t.line('"""one')
        t.expect("… ")
        t.line("")
        t.expect("… ")
        t.line('two"""')
        t.expect(STATS)
        t.prompt()
        t.send(PASTE.format("pasted\rtwice") + "\r")
        t.expect(STATS)
        t.prompt()
        t.line("//slash")
        t.expect(STATS)
        t.prompt()
        t.line("/nonsense")
        t.expect("there is no command /nonsense: /help")
        t.prompt()
        t.line("/params temperature=-1")
        t.expect("temperature=-1 is invalid")
        t.prompt()
        t.line("/params temperature=0 stop='a b'")
        t.expect(r"\[temperature=0 .*stop='a b'")
        t.prompt()
        t.line("/system Be brief.")
        t.expect(r"\[system: Be brief\.\]")
        t.prompt()
        t.send("/sa\t")  # completed
        t.line(path)
        t.expect("4 turns saved")
        t.prompt()
        t.line("/quit")
        assert t.wait() == 0
    messages = json.loads(saved.read_text())["messages"]
    questions = [message["content"] for message in messages if message["role"] == "user"]
    assert questions == ["first\nsecond", "one\n\ntwo", "pasted\ntwice", "/slash"]
    assert messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_through_a_pipe_each_answer_is_a_line() -> None:
    lines = 'Name the capital of France.\n\nAnd of Italy?\n/reset\n"""Name a\ncolour."""\n'
    done = octavo("chat", "--temperature", "0", "--max-tokens", "24", *SMALL, input=lines)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == 3
    assert answers[0] == "The capital of France is Paris."
    assert "Rome" in answers[1]
    assert done.stderr == "[a new conversation]\n"


def test_line_breaks_of_an_answer_are_escaped() -> None:
    done = octavo("chat", TINY, "--ignore-eos", "--max-tokens", "200", "--seed", "3", "--temperature", "2", "--stats", input="ab\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert re.fullmatch(STATS, done.stderr.strip())


@pytest.mark.parametrize(
    ("lines", "expected"),
    [("/frobnicate\n", "/frobnicate"), ("/undo\n", "nothing to take back"), ("/load no-such-file\n", "no-such-file"), ("x" * 900, "256")],
)
def test_what_cannot_be_done_ends_a_pipe_with_one_sentence(lines: str, expected: str) -> None:
    done = octavo("chat", TINY, input=lines + "\nnever answered\n")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr


def test_ctrl_c_ends_a_pipe() -> None:
    process = subprocess.Popen(
        [*COMMAND, "chat", TINY, "--ignore-eos"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"/params max_tokens=1\nHello\n")
    process.stdin.flush()
    process.stdout.readline()  # it runs
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_a_model_without_a_template_cannot_chat(tmp_path: Path) -> None:
    for path in Path(TINY).iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    done = octavo("chat", str(tmp_path), input="Hello\n")
    assert done.returncode == 2
    assert "no chat template" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_variables_for_the_template(tmp_path: Path) -> None:
    for path in Path(TINY).iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('tone is ' ~ tone ~ ', not ' ~ 3) }}")
    done = octavo("chat", str(tmp_path), "--chat-template-kwargs", '{"tone": "warm"}', input="Hello\n")
    assert done.returncode == 2
    assert "tone is warm" in done.stderr


@pytest.mark.parametrize(
    ("given", "says"), [("{", "no JSON"), ("3", "must be an object"), ('{"messages": []}', "messages"), ('{"a b": 1}', "a b")]
)
def test_variables_that_are_none(given: str, says: str) -> None:
    """Refused before a model is looked for."""
    done = octavo("chat", "no-such-model", "--chat-template-kwargs", given, input="Hello\n")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("colours", [True, False])
def test_thinking_is_apart_from_the_answer(colours: bool, tmp_path: Path) -> None:
    """The template opens the thinking and the model never ends it: everything it says is thinking."""
    for path in Path(TINY).iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    template = (Path(TINY) / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").write_text(template.replace("<|assistant|>", "<|assistant|><think>\n"))
    arguments = ("chat", str(tmp_path), "--ignore-eos", "--max-tokens", "8", "--seed", "1")
    with terminal(*arguments, colours=colours, XDG_STATE_HOME=str(tmp_path)) as t:
        t.prompt()
        t.line("Hello")
        t.expect(r"\x1b\[2m[^\[]" if colours else r"\(thinking\)\n")
        t.expect(r"\[8 tokens")
        t.prompt()
        t.send(CTRL_D)
        assert t.wait() == 0
    assert octavo(*arguments, input="Hello\n").stdout == "\n"  # nothing but thinking
