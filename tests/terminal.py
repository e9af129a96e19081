"""Programs that are given a terminal, as a user's shell gives one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def on_terminal(argv: Sequence[str]) -> tuple[str, str]:
    """What `python argv...` writes to stdout, and to a stderr that is a terminal of 200 columns.

    Asserts that it ends well. To stdout it may write some KB only: that is read at its end.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 200, 0, 0))
    command = [sys.executable, *argv]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as child:
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
        assert child.stdout is not None
        said = child.stdout.read()
    os.close(ours)
    assert child.returncode == 0, shown
    return said, shown.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # its end, on Linux
        return b""
