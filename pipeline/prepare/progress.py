"""How far a long subcommand is: a bar on a terminal, a line now and then in a job's log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

_EVERY_SEC = 10.0


class Progress:
    """Counts files and bytes towards known totals; `add` may be called from any thread."""

    def __init__(self, what: str, files: int, total_bytes: int) -> None:
        """`what` begins every line; the totals are of what is left to do."""
        self._what = what
        self._files, self._bytes = files, total_bytes
        self._files_done = self._bytes_done = 0
        self._lock = threading.Lock()
        self._started = self._shown = time.monotonic()
        self._bar = (
            tqdm(total=total_bytes, desc=what, unit="B", unit_scale=True, leave=False)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        """Shows itself until the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    def add(self, files: int, done_bytes: int) -> None:
        """So much more is done."""
        with self._lock:
            self._files_done += files
            self._bytes_done += done_bytes
            if self._bar is not None:
                self._bar.update(done_bytes)
                self._bar.set_postfix_str(f"{self._files_done}/{self._files} files", refresh=False)
            elif time.monotonic() - self._shown > _EVERY_SEC:
                self._shown = time.monotonic()
                print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = self._bytes_done / (time.monotonic() - self._started)
        left = (self._bytes - self._bytes_done) / rate if rate else float("inf")
        return (
            f"{self._what}: {self._files_done} of {self._files} files, "
            f"{self._bytes_done / 1e9:.2f} of {self._bytes / 1e9:.2f} GB, "
            f"{rate / 1e6:.0f} MB/s, {left / 60:.1f} min left"
        )
