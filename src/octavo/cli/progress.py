"""Progress on stderr: a bar for bytes, a bar for repetitions, a spinner; nothing at all where nobody looks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def fetch(model: str, *, quiet: bool = False) -> Path:
    """``octavo.weights.resolve`` with a progress bar while an alias is downloaded; returns the local path.

    Without a terminal (a log, CI) one plain line says that the download has begun. Raises ``Refused`` when it cannot be fetched,
    ``ValueError`` when there is no such model.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from octavo.cli.run import Refused
    from octavo.weights import PullError, resolve

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=False), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=False, disable=quiet or not console.is_terminal) as bar:
        task = None

        def on_progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(f"Fetching {model}", total=total_bytes)
                if not quiet and not console.is_terminal:
                    print(f"Fetching {model} ({total_bytes / 1e6:.0f} MB) …", file=sys.stderr, flush=True)
            bar.update(task, completed=done_bytes)

        try:
            return resolve(model, on_progress=on_progress)
        except PullError as error:
            raise Refused(str(error)) from error


@contextmanager
def working(message: str) -> Iterator[None]:
    """A spinner with ``message`` until the block ends."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(message):
        yield


@contextmanager
def counting(message: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar of ``total`` steps; gives the function that makes one of them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(message, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def counted(message: str) -> Iterator[Callable[[int, int], None]]:
    """A bar whose length is known later; gives the function that is told how many steps are done, and of how many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(message, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
