"""``--help`` teaches by example, the examples are true, and none of it costs more than it must."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import typer.main

from octavo.cli.app import app
from octavo.cli.options import ENGINE_HELP
from octavo.config import EngineConfig
from tests.cli.running import octavo

COMMANDS = [
    "serve", "chat", "generate", "pull", "list", "rm", "inspect", "inspect model", "inspect program",
    "bench", "bench latency", "bench throughput", "bench serve", "bench startup", "info", "perplexity",
]  # fmt: skip


def command(path: str) -> Any:
    """The parsed application's command at ``path`` (words between spaces)."""
    found: Any = typer.main.get_command(app)
    for word in path.split():
        found = found.commands[word]
    return found


def examples(help_text: str) -> list[list[str]]:
    """The words of each example line, pipes and remarks left out."""
    lines = [line.strip() for line in help_text.splitlines()]
    starts = [line.split("|")[-1].strip() if line.startswith("cat ") else line for line in lines]
    return [shlex.split(line.split("  ")[0].split(" | ")[0]) for line in starts if line.startswith("octavo ") and "Usage" not in line]


def test_every_command_is_listed_here() -> None:
    listed = {path.split()[0] for path in COMMANDS}
    assert set(command("").commands) == listed
    for group in ("bench", "inspect"):
        assert set(command(group).commands) == {path.split()[1] for path in COMMANDS if path.startswith(f"{group} ")}


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_examples_that_parse(path: str) -> None:
    done = octavo(*path.split(), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    found = examples(done.stdout)
    assert found, "no example"
    assert all(" ".join(words).startswith(f"octavo {path}") or path == "pull" for words in found)
    for words in found:
        target, rest = command(""), words[1:]
        while hasattr(target, "commands"):
            target, rest = target.commands[rest[0]], rest[1:]
        target.make_context(words[1], list(rest))  # raises for a flag that does not exist or a value that does not fit


def test_the_application_itself_has_examples() -> None:
    done = octavo("--help")
    assert done.returncode == 0
    assert [words[1] for words in examples(done.stdout)] == ["serve", "chat", "generate", "bench"]


@pytest.mark.parametrize("path", ["serve", "bench latency", "bench throughput"])
def test_every_engine_setting_is_a_flag_with_the_same_default(path: str) -> None:
    given = command(path).make_context(path, []).params
    for field in fields(EngineConfig):
        if field.name == "served_model_name" and path != "serve":
            continue
        assert given[field.name] == field.default, field.name


def test_every_engine_setting_is_explained() -> None:
    assert set(ENGINE_HELP) == {field.name for field in fields(EngineConfig)} - {"model"}


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from octavo.cli import main
main(["--help"])
heavy = [m for m in ("numpy", "fastapi", "uvicorn", "tokenizers", "jinja2", "rich", "prometheus_client", "asyncio") if m in sys.modules]
print("heavy:", heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stdout + done.stderr


def test_version_and_info() -> None:
    version = octavo("--version")
    assert version.returncode == 0
    name, number = version.stdout.split()
    assert name == "octavo"
    assert number[0].isdigit()
    info = octavo("info")
    assert info.returncode == 0
    known = dict(line.split(maxsplit=1) for line in info.stdout.splitlines())
    assert known["octavo"] == number
    assert set(known) == {"octavo", "python", "processor", "kernels", "threads", "memory", "cache"}
    assert int(known["threads"].split()[0]) >= 1
