"""Lines for people: on the console, in colours where there is a terminal, and in log.txt."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

log = logging.getLogger("trainyard")
files_log = logging.getLogger("trainyard.files")  # what a rank's own file system does

_RED, _YELLOW, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[0m"


def in_colour(stream: TextIO) -> bool:
    """Whether colours may be written to `stream`: a terminal, and no NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


class _LineFormatter(logging.Formatter):
    """Time and message; a line of error stands bare, so that it starts with `error:`."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.ERROR:
            return record.getMessage()
        return f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {record.getMessage()}"


class _ConsoleHandler(logging.Handler):
    """Information to stdout, the rest to stderr; leaves a progress bar whole."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        line = self.format(record)
        if record.levelno >= logging.WARNING and in_colour(stream):
            line = f"{_RED if record.levelno >= logging.ERROR else _YELLOW}{line}{_PLAIN}"
        try:
            tqdm.write(line, file=stream)
            stream.flush()
        except OSError:
            pass  # A launcher that is ending has closed the pipe; log.txt still gets the line.


class _OtherRankFormatter(logging.Formatter):
    """Says whose warning it is; a line of error stands bare, as on rank 0."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._own = f"rank {rank} on {socket.gethostname()}"

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.ERROR:
            return record.getMessage()
        return f"{self._own}: {record.getMessage()}"


def start_logging(rank: int) -> None:
    """Rank 0 says everything; the others only what they alone know: errors, and what their file
    system refuses, as a node's mount may fail for its own ranks only.

    All other warnings are of what every rank sees alike.
    """
    for handler in list(log.handlers):
        log.removeHandler(handler)
    handler = _ConsoleHandler()
    if rank != 0:
        handler.setFormatter(_OtherRankFormatter(rank))
    log.addHandler(handler)
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    # A level of its own, which comes before the one above; its lines go to the same handlers.
    files_log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    log.propagate = False
    logging.raiseExceptions = False  # a full disk under log.txt must not end the training


def log_to_file(run_dir: Path) -> None:
    """Adds `log.txt` of the run to where rank 0 writes."""
    handler = logging.FileHandler(run_dir / "log.txt", encoding="utf-8")
    handler.setFormatter(_LineFormatter())
    log.addHandler(handler)
