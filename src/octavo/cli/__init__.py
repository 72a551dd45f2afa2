"""The command line: ``octavo serve | chat | generate | pull | list | rm | inspect | bench | info``.

``main`` is the console script's entry point. Everything heavy (the engine, NumPy, the web stack) is imported by the
command that needs it, so that ``octavo --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``argv`` (the process's own arguments if ``None``) and returns the exit code; see ``octavo.cli.run``."""
    from octavo.cli.run import run

    return run(argv)


__all__ = ["main"]
