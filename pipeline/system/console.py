"""Lines for people, on the console and in log.txt, and the progress bar below them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from pipeline.system.words import printable

log = logging.getLogger("trainyard")
files_log = logging.getLogger("trainyard.files")  # messages about a rank's own file system

_WARNING = "warning:"
_RED, _YELLOW, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"


def in_colour(stream: TextIO) -> bool:
    """Whether colours may be written to `stream`: a terminal, and no NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def counted(number: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s: "1 rank", "2,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Columns of text, two spaces between them, with no blank at a line's end; a cell stays on its
    line, whatever name is in it. The columns `numbers` are set to the right."""
    head, rows = [printable(cell) for cell in head], [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


_refused: list[OSError] = []  # the first error of stdout that is no closed pipe


def say(*lines: str, stream: TextIO | None = None) -> None:
    """Writes lines to `stream`, by default stdout, above any bar there: each on one line, whatever
    names are in it (`printable`).

    Never raises for a stream that takes nothing: the work counts, and words come after its files.
    `output_refused` says so in the end.
    """
    stream = stream or sys.stdout
    try:
        for line in lines:
            write_line(printable(line), stream)
    except BrokenPipeError:
        pass  # `head`, or a pager, which has had what it wanted
    except OSError as error:
        if stream is sys.stdout and not _refused:
            _refused.append(error)


def output_refused() -> str | None:
    """Why something that `say` was to write to stdout is not there; None if all is, or if its
    reader has closed the pipe."""
    return str(_refused[0].strerror or _refused[0]) if _refused else None


def write_line(line: str, stream: TextIO) -> None:
    """Writes a line as it is, above any bar on `stream`, with escapes for what is not in the
    stream's character set. Raises `OSError`."""
    charset = getattr(stream, "encoding", None) or "utf-8"
    line = line.encode(charset, "backslashreplace").decode(charset)
    tqdm = sys.modules.get("tqdm")  # no bar without it; `gpu_check` runs where it is not installed
    if tqdm is None:
        stream.write(f"{line}\n")
    else:
        tqdm.tqdm.write(line, file=stream)
    stream.flush()


class _LineFormatter(logging.Formatter):
    """Makes one line of a record, whatever names are in it; adds no prefix to an error, so that its
    line starts with `error:`."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.ERROR:
            return printable(record.getMessage())
        return printable(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Gives a warning its word, which is all that marks it where there is no colour."""
        if record.levelno == logging.WARNING and not record.message.startswith(_WARNING):
            record.message = f"{_WARNING} {record.message}"
        return super().formatMessage(record)


class ConsoleHandler(logging.Handler):
    """Logs information to stdout and the rest to stderr, or all to one stream; keeps a progress bar
    intact."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream
        self.setFormatter(_LineFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_bar", False):
            return
        of_level = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        stream = self._stream or of_level
        line = self.format(record)
        if record.levelno >= logging.WARNING and in_colour(stream):
            line = f"{_RED if record.levelno >= logging.ERROR else _YELLOW}{line}{_PLAIN}"
        with contextlib.suppress(OSError):
            write_line(
                line, stream
            )  # an exiting launcher has closed the pipe; log.txt gets the line


def start_logging(rank: int) -> None:
    """Sets up logging: rank 0 logs everything, the others only errors and what their file system
    refuses, as a node's mount may fail for its own ranks only.

    All other warnings are about what every rank sees alike.
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
    """Makes this rank also log to the file `path`."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_LineFormatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)


LINE_SEC = 10.0
"""Interval between lines in a job's log that replace a bar."""

_DRAW_SEC = 0.2
_WORDS_ONLY = "{desc}{percentage:3.0f}%|{bar}| {words}"

_Bar = TypeVar("_Bar", bound="Bar")


class Bar:
    """A progress bar towards `total` in the last line of a terminal, below what is printed
    meanwhile.

    Elsewhere, or without `wanted`, nothing is drawn: `shown` is false, and `line_due` says when a
    plain line may take its place. A terminal that goes away takes the bar with it, and no error of
    it is raised. A context manager, which removes the bar at its end.

    `what` is shown in front of the bar, `words` behind it; with a `unit`, "B" for bytes as kB, MB
    and so on, also how much is done, the time and the speed.
    """

    def __init__(
        self, total: int, what: str = "", position: int = 0, *, unit: str = "",
        stream: TextIO | None = None, wanted: bool = True,
    ) -> None:  # fmt: skip
        self._stream = stream or sys.stdout
        self._drawn_at, self._line_at = 0.0, time.monotonic()
        from pipeline.system.drawing import Drawing  # needs tqdm, as `say`

        self._drawing = Drawing(
            total=total, initial=position, desc=printable(what), file=self._stream, leave=False,
            disable=not (wanted and self._stream.isatty()), dynamic_ncols=True,
            unit=unit, unit_scale=unit == "B", bar_format=None if unit else _WORDS_ONLY,
            colour="green" if in_colour(self._stream) else None,
        )  # fmt: skip

    def __enter__(self: _Bar) -> _Bar:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the bar, as `close` does."""
        self.close()

    @property
    def shown(self) -> bool:
        """Whether there is a bar and its terminal; the kernel reports a closed one as no terminal.
        tqdm itself continues as if its writes succeeded (4.70)."""
        if not self._drawing.disable and not self._stream.isatty():
            self._drawing.disable = True
        return not self._drawing.disable

    @property
    def interval_sec(self) -> float:
        """How often there is something to show."""
        return LINE_SEC if self._drawing.disable else _DRAW_SEC

    def move(self, position: int, *words: str) -> None:
        """Sets how much is done; redraws if the last time was a moment ago. Without `words` those
        behind the bar stay."""
        if self._drawing.disable:
            return
        self._drawing.n = position
        if words:
            self._drawing.words = tuple(enumerate(map(printable, words)))
        if time.monotonic() - self._drawn_at >= _DRAW_SEC:
            self._draw()

    def redraw(self, what: str, words: Sequence[tuple[int, str]]) -> None:
        """Draws now, with new words around the bar: those behind it each with a rank, of which the
        highest is left out first where they leave no room for a bar."""
        self._drawing.set_description_str(printable(what), refresh=False)
        self._drawing.words = tuple((rank, printable(word)) for rank, word in words)
        self._draw()

    def line_due(self) -> bool:
        """Whether a line should report progress: there is no bar, and the last was a while ago."""
        now = time.monotonic()
        if not self._drawing.disable or now - self._line_at <= LINE_SEC:
            return False
        self._line_at = now
        return True

    def close(self) -> None:
        """Removes the bar; the lines above stay."""
        with contextlib.suppress(OSError):
            self._drawing.close()

    def _draw(self) -> None:
        if self.shown:
            self._drawn_at = time.monotonic()
            with contextlib.suppress(OSError):  # display errors must not end the work
                self._drawing.refresh()
