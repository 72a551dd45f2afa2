"""What the READMEs tell people to paste works, and both tell the same."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.cli.running import environment, octavo
from tests.cli.test_help import command
from tests.cli.test_serve import served

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The lines behind a prompt, continued ones joined, remarks cut off."""
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)$", "\n".join(blocks(text, "console")), re.MULTILINE)
    return [re.sub(r"  +#.*", "", line.replace("\\\n", " ")) for line in found]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_languages_show_the_same_code() -> None:
    assert blocks(ENGLISH, "python") == blocks(CHINESE, "python")
    assert commands(ENGLISH) == commands(CHINESE)
    assert len(blocks(ENGLISH, "python")) == 3
    assert len(re.findall(r"^## ", ENGLISH, re.MULTILINE)) == len(re.findall(r"^## ", CHINESE, re.MULTILINE))


def test_every_octavo_command_parses() -> None:
    lines = [line for line in commands(ENGLISH) if line.startswith("octavo ")]
    assert len(lines) >= 5
    for line in lines:
        target, rest = command(""), shlex.split(line)[1:]
        while hasattr(target, "commands"):
            target, rest = target.commands[rest[0]], rest[1:]
        target.make_context(line, list(rest))


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z][\w-]*)", ENGLISH)) - {"something"}
    assert named, "no target named"
    assert named <= targets


def test_links_lead_somewhere() -> None:
    for text in (ENGLISH, CHINESE):
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (ROOT / link).exists(), link


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_the_offline_examples() -> None:
    """The second one goes on where the first ends."""
    generating, searching = [block for block in blocks(ENGLISH, "python") if "from octavo" in block]
    lines = run_python(generating + searching).splitlines()
    assert lines[0].startswith("The capital of France is →  Paris")
    scores = [float(found[1]) for line in lines if (found := re.match(r"(-\d+\.\d+) ", line))]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True), "the best comes first"


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_the_http_examples() -> None:
    [code] = [block for block in blocks(ENGLISH, "python") if "from openai" in block]
    [curl] = [line for line in commands(ENGLISH) if line.startswith("curl ")]
    with served() as (_, banner):
        url = re.search(r"API +(http://[^/]+)", banner)
        assert url is not None
        text = run_python(
            code.replace("http://127.0.0.1:8000", url[1]).replace("stream=True,", "stream=True, max_tokens=32, temperature=0,")
        )
        assert "gravity" in text.lower()
        body = re.search(r"-d '(.*)'", curl)
        assert body is not None
        request = urllib.request.Request(f"{url[1]}/v1/chat/completions", body[1].encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"] == "The capital of France is Paris."


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_the_generate_example() -> None:
    [line] = [line for line in commands(ENGLISH) if line.startswith("octavo generate")]
    done = octavo(*shlex.split(line)[1:], "--max-tokens", "16", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
