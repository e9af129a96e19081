"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from pipeline.monitor.logs import in_colour, log

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
    terminal that goes away takes the bar with it; the lines that it kept out of the log go there.
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
        if not self._is_shown():
            log.info("%s", train_line(metrics))
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
