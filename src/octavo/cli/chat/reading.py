"""Reading messages: several lines as one, line editing and a history in a terminal, plain lines from a pipe.

A line that ends in a backslash goes on in the next one; three double quotes begin a message of several lines that ends with the next three.
Where the ``readline`` module exists (everywhere but on Windows), lines are edited and recalled as in a shell, commands are
completed with Tab, and text that is pasted stays one message however many lines it has.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

QUOTES = '"""'
HISTORY_LENGTH = 2000

ReadLine = Callable[[bool], str]
"""``read_line(continued)``: the next line without its end. Raises ``EOFError`` when there is none."""


def read_message(read_line: ReadLine) -> str:
    """The next message. Raises ``EOFError`` at the end of the input, unless a message has begun: that one counts."""
    line = read_line(False)
    if line.lstrip().startswith(QUOTES):
        return _quoted(line.lstrip()[len(QUOTES) :], read_line)
    lines = []
    try:
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = read_line(True)
        lines.append(line)
    except EOFError:
        pass
    return "\n".join(lines)


def _quoted(line: str, read_line: ReadLine) -> str:
    lines = []
    try:
        while QUOTES not in line:
            lines.append(line)
            line = read_line(True)
        lines.append(line[: line.index(QUOTES)])
    except EOFError:
        pass
    return "\n".join(lines).strip("\n")


def pipe_line(_continued: bool) -> str:
    """A line of standard input, which nobody is typing."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n").rstrip("\r")


def terminal_line(continued: bool) -> str:
    """A line that somebody types."""
    mark = "… " if continued else "> "
    if "NO_COLOR" not in os.environ:
        mark = f"\001\033[1m\002{mark}\001\033[0m\002" if "readline" in sys.modules else f"\033[1m{mark}\033[0m"
    return input(mark)


def history_path() -> Path:
    """``$XDG_STATE_HOME/octavo/chat_history`` or the platform's equivalent."""
    import platformdirs

    return Path(platformdirs.user_state_dir("octavo", appauthor=False)) / "chat_history"


@contextlib.contextmanager
def line_editing(commands: Sequence[str]) -> Iterator[None]:
    """Lets ``input`` edit, recall and complete until the block ends, and keeps the history in a file only the user can read.

    A history that cannot be read or written is no reason not to talk.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    path = history_path()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LENGTH)
    readline.set_completer_delims(" ")
    readline.set_completer(partial(_complete, commands))
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")
    try:
        yield
    finally:
        readline.set_completer(None)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def _complete(commands: Sequence[str], text: str, index: int) -> str | None:
    """The ``index``-th command that begins with ``text``, as readline asks for it."""
    fitting = [f"{command} " for command in commands if text.startswith("/") and command.startswith(text)]
    return fitting[index] if index < len(fitting) else None
