"""Lines for people, on the console and in log.txt, and a progress bar."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

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
        if getattr(record, "on_bar", False):
            return
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


def log_to_file(path: Path) -> None:
    """Adds the file `path` to where this rank writes."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_LineFormatter())
    log.addHandler(handler)


_DRAW_SEC = 0.2
_BAR = "{desc}{percentage:3.0f}%|{bar}| {words}"
_LEAST_BAR = 10  # cells
_TRAIN_LINE = (
    "epoch {epoch} step {step} loss {loss:.4f} top1 {top1:.2%} lr {lr:.5g} "
    "{images_per_sec:.0f} img/s data wait {data_wait_share:.1%}"
)


def train_line(metrics: Mapping[str, Any]) -> str:
    """A line of training metrics for people. Raises `KeyError` if it is none."""
    return _TRAIN_LINE.format(**counted_from_one(metrics))


def counted_from_one(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics whose epoch is as people count them, so that the last of 4 is epoch 4."""
    return {**metrics, "epoch": metrics["epoch"] + 1}


class _Bar(tqdm):  # type: ignore[misc]
    """tqdm's bar with words behind it, which are left out one by one where they leave no bar.

    Its own postfix begins with a comma, and is cut at its end.
    """

    words: tuple[tuple[int, str], ...] = ()
    """What stands behind the bar, each with its rank: the highest goes first."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm fills the bar's form with."""
        known: dict[str, Any] = super().format_dict
        room = known["ncols"] or 1000
        room -= len(f"{known['prefix'] or ''}100%|| ") + _LEAST_BAR
        return {**known, "words": _fitting(self.words, room)}


def _fitting(words: Sequence[tuple[int, str]], columns: int) -> str:
    """As many of the ranked `words` as fit, in their order."""
    left = list(words)
    while len(text := " ".join(word for _, word in left)) > columns and len(left) > 1:
        left.remove(max(left))
    return text


class Progress:
    """Shows a run of `total_images` that stands at `position`.

    Speed and time left are those of the metrics, whose clock does not jump, not the bar's own. A
    terminal that goes away takes the bar with it; its lines go to the console again.
    """

    def __init__(self, total_images: int, position: int) -> None:
        self._total_images = total_images
        self._drawn_at = 0.0
        self._bar = _Bar(
            total=total_images, initial=position, disable=not sys.stdout.isatty(),
            file=sys.stdout, dynamic_ncols=True, bar_format=_BAR, leave=False,
            colour="green" if in_colour(sys.stdout) else None,
        )  # fmt: skip

    def train(self, metrics: Mapping[str, Any], verdict: str) -> None:
        """Shows a line of training metrics and what limits the training."""
        is_shown = self._is_shown()
        log.info("%s", train_line(metrics), extra={"on_bar": is_shown})
        if not is_shown:
            return
        shown = counted_from_one(metrics)
        left = time_left((self._total_images - metrics["position"]) / metrics["images_per_sec"])
        self._bar.set_description_str("epoch {epoch} ".format(**shown), refresh=False)
        words = (
            (2, "loss {loss:.3f}".format(**shown)),
            (4, "top1 {top1:.2%}".format(**shown)),
            (3, "{images_per_sec:.0f} img/s".format(**shown)),
            (0, f"{left} left"),
            (1, verdict),
        )
        self._bar.words = tuple(ranked for ranked in words if ranked[1])
        self._draw()

    def advance(self, position: int) -> None:
        """Moves the bar."""
        if self._bar.disable:
            return
        self._bar.n = position
        now = time.monotonic()
        if now - self._drawn_at >= _DRAW_SEC:
            self._drawn_at = now
            self._draw()

    def close(self) -> None:
        """Takes the bar away: what was said stands above it, and a run that ended has no time
        left."""
        with contextlib.suppress(OSError):
            self._bar.close()

    def _is_shown(self) -> bool:
        """Whether there is a bar and its terminal; of one that was closed the kernel says that it
        is none. tqdm itself goes on as if its writes succeeded (4.70)."""
        if not self._bar.disable and not sys.stdout.isatty():
            self._bar.disable = True
        return not self._bar.disable

    def _draw(self) -> None:
        with contextlib.suppress(OSError):  # rank 0 alone has a bar: it may not end the run
            self._bar.refresh()


def time_left(seconds: float) -> str:
    """As a person says it: "3:07" minutes, "1:02:03" hours, "2 d 4 h"."""
    minutes, sec = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02d}:{sec:02d}" if hours else f"{minutes}:{sec:02d}"
