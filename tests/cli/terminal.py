"""A terminal of our own: a process that believes somebody is typing, for what only happens there."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.running import environment

CTRL_C, CTRL_D = "\x03", "\x04"
PASTE = "\x1b[200~{}\x1b[201~"
"""What a terminal sends for pasted text."""

_OWN_TERMINAL = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from octavo.cli import main; sys.exit(main())"
"""Takes its standard input for its controlling terminal, so that Ctrl-C is a signal, and runs the command line."""


class Terminal:
    """``text``: what has come and was not expected yet."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.text = ""
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def send(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def line(self, text: str) -> None:
        self.send(text + "\r")

    def expect(self, pattern: str, timeout_s: float = 60) -> re.Match[str]:
        """Waits for ``pattern``, and takes everything up to its end out of ``text``."""
        deadline = time.monotonic() + timeout_s
        while (match := re.search(pattern, self.text)) is None:
            assert self._read(deadline), f"waited in vain for {pattern!r}; there is: {self.text!r}"
        self.text = self.text[match.end() :]
        return match

    def prompt(self) -> None:
        """Waits until a line can be typed."""
        self.expect(r"> ")
        time.sleep(0.2)  # a signal that comes between the prompt and the wait for a key would only be seen with the next key

    def wait(self, timeout_s: float = 60) -> int:
        """Reads to the end and returns the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self._descriptor, 65536) if ready else b""
        except OSError:  # the other end is closed
            data = b""
        self.text = (self.text + self._decoder.decode(data)).replace("\r\n", "\n")
        return bool(data)


@contextmanager
def terminal(*arguments: str, colours: bool = False, **variables: str) -> Iterator[Terminal]:
    """``octavo …`` in a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", _OWN_TERMINAL, *arguments]
    settings = environment(TERM="xterm", **variables)
    if colours:
        del settings["NO_COLOR"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=settings)
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(ours)
