"""Programs that are given a terminal, as a user's shell gives one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def on_terminal(argv: Sequence[str]) -> tuple[str, str]:
    """What `python argv...` writes to stdout, and to a stderr that is a terminal of 200 columns.

    Asserts that it ends well. To stdout it may write some KB only: that is read at its end.
    """
    terminal = Terminal(argv, os.environ, stdout=subprocess.PIPE)
    code = terminal.wait()
    assert code == 0, terminal.shown()
    assert terminal.process.stdout is not None
    with terminal.process.stdout as stdout:
        return stdout.read().decode(), terminal.shown()


class Terminal:
    """A program whose stderr is a terminal, its stdout too unless told otherwise, and what it has
    shown there so far."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], columns: int = 200,
        stdout: int | None = None,
    ) -> None:  # fmt: skip
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, *argv], cwd=REPOSITORY, env=dict(env), stdin=subprocess.DEVNULL,
            stdout=theirs if stdout is None else stdout, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        self._shown, self._ended = b"", False

    def shown(self) -> str:
        """All of it until now, control characters in it."""
        while (
            not self._ended
            and select.select([self._ours], [], [], 0.0)[0]
            and (part := _read(self._ours))
        ):
            self._shown += part
        return self._shown.decode(errors="replace")

    def shown_lines(self) -> list[str]:
        """Its lines: what a carriage return has overwritten counts as one, too."""
        plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.shown())
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]

    def wait(self, timeout_sec: float = 120.0) -> int:
        """The exit code, at its end; kills it after the timeout."""
        end = time.monotonic() + timeout_sec
        try:
            while self.process.poll() is None and time.monotonic() < end:
                self.shown()  # a program does not end on a terminal that takes no more
                time.sleep(0.02)
            self.shown()
        finally:
            self.process.kill()
            self._ended = True
            os.close(self._ours)
        return self.process.wait()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # its end, on Linux
        return b""
