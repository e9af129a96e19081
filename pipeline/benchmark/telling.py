"""What a benchmark is at, for whoever waits for it: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str], None]
"""Shows a text in the place of the one before; an empty one makes room for lines of others."""


@contextmanager
def telling() -> Iterator[Tell]:
    """A line at the end of stderr, which is gone when the body ends, however it does."""
    shown = sys.stderr.isatty()

    def tell(text: str) -> None:
        if shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        tell("")
