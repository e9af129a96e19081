"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from pipeline.monitor.logs import in_colour, log

_DRAW_SEC = 0.2
_BAR = "{desc}{percentage:3.0f}%|{bar}| {postfix}"
TRAIN_LINE = (
    "epoch {epoch} step {step} loss {loss:.4f} top1 {top1:.4f} lr {lr:.5g} "
    "{images_per_sec:.0f} img/s data wait {data_wait_share:.1%}"
)


class Progress:
    """Shows a run of `total_images` that stands at `position`.

    Speed and time left are those of the metrics, whose clock does not jump, not the bar's own.
    """

    def __init__(self, total_images: int, position: int) -> None:
        self._total_images = total_images
        self._drawn_at = 0.0
        self._bar = tqdm(
            total=total_images, initial=position, disable=not sys.stdout.isatty(),
            file=sys.stdout, dynamic_ncols=True, bar_format=_BAR,
            colour="green" if in_colour(sys.stdout) else None,
        )  # fmt: skip

    def train(self, metrics: Mapping[str, Any], verdict: str) -> None:
        """Shows a line of training metrics and what limits the training."""
        if self._bar.disable:
            log.info("%s", TRAIN_LINE.format(**metrics))
            return
        speed = metrics["images_per_sec"]
        left = time_left((self._total_images - metrics["position"]) / speed)
        self._bar.set_description_str(f"epoch {metrics['epoch']} ", refresh=False)
        shown = "loss {loss:.3f} top1 {top1:.1%} {images_per_sec:.0f} img/s".format(**metrics)
        self._bar.set_postfix_str(f"{shown} {left} left {verdict}".rstrip())

    def advance(self, position: int) -> None:
        """Moves the bar."""
        if self._bar.disable:
            return
        self._bar.n = position
        now = time.monotonic()
        if now - self._drawn_at >= _DRAW_SEC:
            self._drawn_at = now
            self._bar.refresh()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def time_left(seconds: float) -> str:
    """As a person says it: "3:07" minutes, "1:02:03" hours, "2 d 4 h"."""
    minutes, sec = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02d}:{sec:02d}" if hours else f"{minutes}:{sec:02d}"
