"""The decoders' own words: what C libraries write to stderr about images, said once of each kind.

A libjpeg that meets a damaged file tells so on stderr, without its name and each time anew, and
nvImageCodec writes errors for good images that it hands on to a second decoder. While a loader is
open, descriptor 2 goes to a process that passes everything else on (`pipeline.system.native`).
Not to a thread of this process: what it says before it crashes must still arrive.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from typing import TextIO

from pipeline.system import native

_lock = threading.Lock()
_open = 0
_filter: _Filter | None = None


def begin() -> None:
    """Filters descriptor 2 from now on; once more is counted."""
    global _open, _filter
    with _lock:
        _open += 1
        if _filter is None:
            with contextlib.suppress(OSError):  # no process is left: their words stay as they are
                _filter = _Filter()


def end() -> None:
    """Takes back one `begin`; the last restores descriptor 2."""
    global _open, _filter
    with _lock:
        _open -= 1
        if _open == 0 and _filter is not None:
            _filter.close()
            _filter = None


class _Filter:
    """Descriptor 2 through a process; Python's own `sys.stderr` keeps to where it wrote before."""

    def __init__(self) -> None:
        self._before = os.dup(2)
        self._process = subprocess.Popen(
            [sys.executable, "-IS", native.__file__], stdin=subprocess.PIPE, stdout=self._before,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._python, self._shown = sys.stderr, _beside(self._before)
        if self._shown is not None:
            sys.stderr.flush()
            sys.stderr = self._shown
        pipe = self._process.stdin
        assert pipe is not None
        os.dup2(pipe.fileno(), 2)
        pipe.close()
        self._closed = False
        atexit.register(self.close)

    def close(self) -> None:
        """Restores descriptor 2, and waits until all that was written has been passed on; does
        nothing a second time, as when a loader ends after this at the end of the process."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        os.dup2(self._before, 2)
        if self._shown is not None and sys.stderr is self._shown:
            sys.stderr = self._python
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child process still has the pipe
            self._process.wait(timeout=1)
        os.close(self._before)


def _beside(descriptor: int) -> TextIO | None:
    """A stream like `sys.stderr` on a copy of `descriptor`; None if that is not on descriptor 2."""
    try:
        if sys.stderr.fileno() != 2:
            return None
    except (OSError, ValueError, AttributeError):  # no stream, or one in memory
        return None
    return open(
        os.dup(descriptor), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors
    )
