"""What else sees the lines of a run's metrics: each observer gets the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

DRAWN = ("train", "val")
"""Events whose lines are points of curves."""

_NO_CURVES = ("event", "time", "step", "position", "images", "saved")  # axes and labels


class Observer:
    """Sees a run on rank 0; this one looks away. What it raises ends the run on all ranks."""

    wants_pictures = False
    """Whether pictures are drawn for it."""

    def see(self, line: Mapping[str, Any]) -> None:
        """Takes one line of metrics.jsonl, which is written by then."""

    def advance(self, position: int) -> None:
        """Takes the number of images that the run has seen, after each step."""

    def picture(self, tag: str, pixels: np.ndarray, position: int) -> None:
        """Takes an image (H, W, 3) uint8, if it wants any."""

    def begin_close(self) -> None:
        """Comes before any observer's `close`: begins what that then waits for."""

    def close(self) -> None:
        """Comes at the end of this start of the run, whatever ends it."""


def numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics that are points of curves, named `event/name`."""
    for name, value in line.items():
        if name not in _NO_CURVES and value is not None:
            yield f"{line['event']}/{name}", value
