"""Where answers go: ``TerminalScreen`` as the words come, ``PipeScreen`` one answer to a line."""

from __future__ import annotations

import os
import sys
from typing import Protocol

import typer

from octavo.cli.answer import say_dimly
from octavo.cli.run import EXIT_FAULT, say


class Screen(Protocol):
    def write(self, text: str) -> None:
        """More of the answer."""

    def think(self, text: str) -> None:
        """More of the thinking, which comes before the answer."""

    def end(self) -> None:
        """The answer is complete."""

    def show(self, text: str) -> None:
        """What a command has to say, lines and all."""

    def note(self, text: str) -> None:
        """A dim remark of one line."""

    def complain(self, text: str) -> None:
        """Something could not be done."""


class TerminalScreen:
    """Streams; thinking is dim, or between two marks where colours are not wanted."""

    def __init__(self, *, thinking: bool = True) -> None:
        self._colours = "NO_COLOR" not in os.environ
        self._shows_thinking = thinking
        self._thinks = False
        self._column_0 = True

    def _put(self, text: str) -> None:
        if text:
            self._column_0 = text.endswith("\n")
            sys.stdout.write(text)
            sys.stdout.flush()

    def _dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self._colours else text

    def write(self, text: str) -> None:
        if text and self._thinks:
            self._thinks = False
            self._put("\n\n" if self._colours else "\n(end of thinking)\n")
        self._put(text)

    def think(self, text: str) -> None:
        if not text or not self._shows_thinking:
            return
        if not self._thinks and not self._colours:
            self._put("(thinking)\n")
        self._thinks = True
        sys.stdout.write(self._dim(text))
        sys.stdout.flush()
        self._column_0 = text.endswith("\n")

    def end(self) -> None:
        self._thinks = False
        if not self._column_0:
            self._put("\n")

    def show(self, text: str) -> None:
        self._put(text + "\n")

    def note(self, text: str) -> None:
        self._put(self._dim(text) + "\n")

    def complain(self, text: str) -> None:
        say(text)


class PipeScreen:
    """An answer is one line of stdout: a line break in it is written as ``\\n``, a backslash as two. Remarks go to stderr."""

    def __init__(self) -> None:
        self._answer: list[str] = []

    def write(self, text: str) -> None:
        self._answer.append(text)

    def think(self, text: str) -> None:
        pass

    def end(self) -> None:
        line = "".join(self._answer).strip()
        self._answer.clear()
        print(line.replace("\\", "\\\\").replace("\r\n", "\\n").replace("\n", "\\n").replace("\r", "\\n"), flush=True)

    def show(self, text: str) -> None:
        say_dimly(text)

    def note(self, text: str) -> None:
        say_dimly(text)

    def complain(self, text: str) -> None:
        say(f"octavo: {text}")
        raise typer.Exit(EXIT_FAULT)
