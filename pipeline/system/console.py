"""Lines for people, on the console and in log.txt, and the progress bar that may stand below."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, TypeVar

log = logging.getLogger("trainyard")
files_log = logging.getLogger("trainyard.files")  # what a rank's own file system does

_RED, _YELLOW, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"


def in_colour(stream: TextIO) -> bool:
    """Whether colours may be written to `stream`: a terminal, and no NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def counted(number: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s: "1 rank", "2,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, two spaces between them, with no blank at a line's end."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def say(line: str, stream: TextIO | None = None) -> None:
    """Writes a line to `stream`, by default stdout, above the bar that may stand there."""
    from tqdm import tqdm  # not above, as `gpu_check` runs where it is not installed

    stream = stream or sys.stdout
    tqdm.write(line, file=stream)
    stream.flush()


class _LineFormatter(logging.Formatter):
    """Leaves a line of error bare, so that it starts with `error:`."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.levelno >= logging.ERROR else super().format(record)


class ConsoleHandler(logging.Handler):
    """Information to stdout and the rest to stderr, or all to one stream; leaves a progress bar
    whole."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_bar", False):
            return
        of_level = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        stream = self._stream or of_level
        line = self.format(record)
        if record.levelno >= logging.WARNING and in_colour(stream):
            line = f"{_RED if record.levelno >= logging.ERROR else _YELLOW}{line}{_PLAIN}"
        with contextlib.suppress(OSError):
            say(line, stream)  # a launcher that ends has closed the pipe; log.txt gets the line


def start_logging(rank: int) -> None:
    """Rank 0 says everything; the others only what they alone know: errors, and what their file
    system refuses, as a node's mount may fail for its own ranks only.

    All other warnings are of what every rank sees alike.
    """
    for handler in list(log.handlers):
        log.removeHandler(handler)
    handler = ConsoleHandler()
    if rank != 0:
        handler.setFormatter(_LineFormatter(f"rank {rank} on {socket.gethostname()}: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    # A level of its own, which comes before the one above; its lines go to the same handlers.
    files_log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    log.propagate = False
    logging.raiseExceptions = False  # a full disk under log.txt must not end the training


def log_to_file(path: Path) -> None:
    """Adds the file `path` to where this rank writes."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_LineFormatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)


LINE_SEC = 10.0
"""How often a job's log may have a line in the place of a bar."""

_DRAW_SEC = 0.2
_WORDS_ONLY = "{desc}{percentage:3.0f}%|{bar}| {words}"

_Bar = TypeVar("_Bar", bound="Bar")


class Bar:
    """How far `total` is, drawn on a terminal in the last line, below what is said meanwhile.

    Elsewhere, or without `wanted`, nothing is drawn: `shown` is false, and `line_due` says when a
    line of plain words may take its place. A terminal that goes away takes the bar with it, and
    whatever it does raises nothing. A context manager, which takes the bar away at its end.

    `what` stands in front of the bar, `words` behind it. With a `unit`, "B" for bytes as kB, MB and
    so on, there stand also how much is done, the time and the speed.
    """

    def __init__(
        self, total: int, what: str = "", position: int = 0, *, unit: str = "",
        stream: TextIO | None = None, wanted: bool = True,
    ) -> None:  # fmt: skip
        self._stream = stream or sys.stdout
        self._drawn_at, self._line_at = 0.0, time.monotonic()
        from pipeline.system.drawing import Drawing  # needs tqdm, as `say`

        self._drawing = Drawing(
            total=total, initial=position, desc=what, file=self._stream, leave=False,
            disable=not (wanted and self._stream.isatty()), dynamic_ncols=True,
            unit=unit, unit_scale=unit == "B", bar_format=None if unit else _WORDS_ONLY,
            colour="green" if in_colour(self._stream) else None,
        )  # fmt: skip

    def __enter__(self: _Bar) -> _Bar:
        """Is there already."""
        return self

    def __exit__(self, *_: object) -> None:
        """As `close`."""
        self.close()

    @property
    def shown(self) -> bool:
        """Whether there is a bar and its terminal; of one that was closed the kernel says that it
        is none. tqdm itself goes on as if its writes succeeded (4.70)."""
        if not self._drawing.disable and not self._stream.isatty():
            self._drawing.disable = True
        return not self._drawing.disable

    @property
    def interval_sec(self) -> float:
        """How often there is something to show."""
        return LINE_SEC if self._drawing.disable else _DRAW_SEC

    def move(self, position: int, *words: str) -> None:
        """So much is done; draws it if the last time is a moment ago. Without `words` what stands
        behind the bar stays."""
        if self._drawing.disable:
            return
        self._drawing.n = position
        if words:
            self._drawing.words = tuple(enumerate(words))
        if time.monotonic() - self._drawn_at >= _DRAW_SEC:
            self._draw()

    def tell(self, what: str, words: Sequence[tuple[int, str]]) -> None:
        """Draws now, with other words around the bar: those behind it each with its rank, as the
        highest goes first where they leave no room for a bar."""
        self._drawing.set_description_str(what, refresh=False)
        self._drawing.words = tuple(words)
        self._draw()

    def line_due(self) -> bool:
        """Whether a line should tell how far this is: nothing is drawn, and it is a while ago."""
        now = time.monotonic()
        if not self._drawing.disable or now - self._line_at <= LINE_SEC:
            return False
        self._line_at = now
        return True

    def close(self) -> None:
        """Takes the bar away: what was said stands above it."""
        with contextlib.suppress(OSError):
            self._drawing.close()

    def _draw(self) -> None:
        if self.shown:
            self._drawn_at = time.monotonic()
            with contextlib.suppress(OSError):  # what is shown may not end what is done
                self._drawing.refresh()
