"""The plans of images that are neither resized nor coloured: those of CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import Plan
from pipeline.data.order import uniform


@dataclass(frozen=True)
class PaddedCrop:
    """CIFAR's training crop (section 4.2): `padding` pixels on each side, then a random crop.

    Boxes are whole pixels relative to the image, and those of an image of `size` pixels begin from
    -padding to padding; what lies beyond the image is zero after the mean is subtracted.
    """

    size: int = 32
    padding: int = 4
    flip: bool = True

    # Words: y, x, flip, one spare.
    words_per_position: ClassVar[int] = 4

    def plan(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32], words: NDArray[np.uint64]
    ) -> Plan:
        """Plan B images of the given sizes (B,), none below `size`, with their words (B, 4)."""
        draws = uniform(np.ascontiguousarray(words.T))
        y, x = (
            np.floor(draw * (sides - self.size + 2 * self.padding + 1)) - self.padding
            for draw, sides in zip(draws[:2], (heights, widths), strict=True)
        )
        return _plan(y, x, self.size, ((draws[2] < 0.5) & self.flip).astype(np.int32))


@dataclass(frozen=True)
class Untouched:
    """CIFAR's validation view: the image as it is, `size` pixels a side."""

    size: int = 32

    words_per_position: ClassVar[int] = 0

    def plan(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32], words: NDArray[np.uint64]
    ) -> Plan:
        """Plan B images of `size` x `size`; words is (B, 0), nothing is random."""
        corner = np.zeros(len(heights))
        return _plan(corner, corner, self.size, np.zeros(len(heights), dtype=np.int32))


def _plan(
    y: NDArray[np.float64], x: NDArray[np.float64], size: int, flips: NDArray[np.int32]
) -> Plan:
    """The plan of square boxes that begin at y and x (B,)."""
    side = np.full(len(y), size, dtype=np.float64)
    return Plan(
        boxes=np.stack([y, x, side, side], axis=1).astype(np.float32),
        flips=flips,
        offsets=np.zeros((len(y), 3), dtype=np.float32),
        shape=(size, size),
    )
