"""How far a long subcommand is: a bar on a terminal, a line now and then in a job's log."""

from __future__ import annotations

import sys
import threading
import time

from pipeline.system.console import Bar


class Progress(Bar):
    """Counts files and bytes towards known totals; `add` may be called from any thread."""

    def __init__(self, what: str, files: int, total_bytes: int) -> None:
        """`what` begins every line; the totals are of what is left to do."""
        super().__init__(total_bytes, what, unit="B", stream=sys.stderr)
        self._what = what
        self._files, self._bytes = files, total_bytes
        self._files_done = self._bytes_done = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def add(self, files: int, done_bytes: int) -> None:
        """So much more is done."""
        with self._lock:
            self._files_done += files
            self._bytes_done += done_bytes
            self.move(self._bytes_done, f"{self._files_done}/{self._files} files")
            if self.line_due():
                print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = self._bytes_done / (time.monotonic() - self._started)
        left = (self._bytes - self._bytes_done) / rate if rate else float("inf")
        return (
            f"{self._what}: {self._files_done} of {self._files} files, "
            f"{self._bytes_done / 1e9:.2f} of {self._bytes / 1e9:.2f} GB, "
            f"{rate / 1e6:.0f} MB/s, {left / 60:.1f} min left"
        )
