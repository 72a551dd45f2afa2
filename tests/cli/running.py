"""Runs the command line as its user does: a process of its own, with its output read as text."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

COMMAND = (sys.executable, "-m", "octavo.cli")


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with a terminal of 100 columns and no colours."""
    return {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **changes}


def octavo(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 240, "env": environment(), "stdin": subprocess.DEVNULL}
    if "input" in options:
        del settings["stdin"]
    return subprocess.run([*COMMAND, *arguments], **{**settings, **options})
