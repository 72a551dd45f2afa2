"""Runs the application and turns whatever goes wrong into one sentence on stderr and an exit code.

2: the request cannot be done as asked (a bad flag or value, an unknown model, no such file, a port in use, no memory).
1: a fault in Octavo itself. 130: interrupted. ``--debug`` shows the traceback instead of hiding it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

EXIT_FAULT = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130


class Refused(Exception):
    """The command cannot be carried out; the message is the sentence that the user reads."""


REFUSALS = (Refused, ValueError, OSError, MemoryError)
"""Errors that say something about the request or the machine; any other exception is a fault of ours."""


@dataclass
class RunState:
    """Carried by the command line's context (``ctx.obj``) from the flags to the error report."""

    debug: bool = False


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; only ``--debug`` lets an exception out."""
    from octavo.cli.app import app

    state = RunState()
    try:
        result = app(args=None if argv is None else list(argv), prog_name="octavo", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`octavo generate … | head`): leave without a second complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else EXIT_FAULT
    except Exception as error:
        return report(error, state)


def report(error: Exception, state: RunState) -> int:
    """Prints ``error`` as one line on stderr and returns the exit code that it deserves."""
    if hasattr(error, "format_message"):  # the command line's own complaints: unknown flag, missing argument, bad value
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help page
            print(error.format_message())
            return EXIT_REFUSED
        command = context.command_path if context is not None else "octavo"
        say(f"{command}: {one_line(error.format_message())} (try '{command} --help')")
        return EXIT_REFUSED
    if state.debug:
        raise error
    if isinstance(error, REFUSALS):
        say(f"octavo: {one_line(describe(error))}")
        return EXIT_REFUSED
    say(f"octavo: internal error: {type(error).__name__}: {one_line(str(error))} (run it again with --debug for the traceback)")
    return EXIT_FAULT


def describe(error: Exception) -> str:
    """The error as a sentence: ``No such file or directory: model.gguf`` rather than ``[Errno 2] …``."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return str(error) or "out of memory: give the KV cache less with --kv-cache-memory-bytes or --memory-fraction"
    return str(error) or type(error).__name__


def one_line(text: str) -> str:
    return " ".join(text.split())


def say(message: str) -> None:
    """One line on stderr, coloured only if a person is looking at it."""
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        message = f"\033[31m{message}\033[0m"
    print(message, file=sys.stderr, flush=True)
