"""Random erasing: which rectangle of a view is erased, if any."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.order import between, draws_of

_TRIES = 10  # torchvision's RandomErasing gives up after ten


@dataclass(frozen=True)
class RandomErasing:
    """Erases one rectangle of a view with `probability` (Zhong et al., "Random erasing data
    augmentation", 2017), by torchvision's definition.

    `area` is a share of the view, `aspect` is height / width. A rectangle is smaller than the view
    on both sides; ten tries, each with words of its own, and none is erased if none of them is.
    """

    probability: float
    area: tuple[float, float] = (0.02, 0.33)
    aspect: tuple[float, float] = (0.3, 3.3)

    # Words: whether, area and aspect of each try, y, x, one spare.
    words_per_position: ClassVar[int] = 24

    def boxes(self, words: NDArray[np.uint64], shape: tuple[int, int]) -> NDArray[np.int32]:
        """Return the rectangles (B, 4) (y, x, h, w) in pixels of views of `shape` (height, width),
        all 0 where nothing is erased; `words` are (B, words_per_position)."""
        draws = draws_of(words)
        assert len(draws) == self.words_per_position, f"{len(draws)} words a position"
        areas = shape[0] * shape[1] * between(draws[1 : 1 + _TRIES], *self.area)
        low, high = (math.log(aspect) for aspect in self.aspect)
        aspects = np.exp(between(draws[1 + _TRIES : 1 + 2 * _TRIES], low, high))
        tries_high = np.rint(np.sqrt(areas * aspects))
        tries_wide = np.rint(np.sqrt(areas / aspects))
        fits = (tries_high < shape[0]) & (tries_wide < shape[1])
        first, image = np.argmax(fits, axis=0), np.arange(len(words))
        erased = fits[first, image] & (draws[0] < self.probability)
        box_high, box_wide = tries_high[first, image], tries_wide[first, image]
        y = np.floor(draws[21] * (shape[0] - box_high + 1))
        x = np.floor(draws[22] * (shape[1] - box_wide + 1))
        boxes = np.stack([y, x, box_high, box_wide], axis=1) * erased[:, None]
        return np.asarray(boxes, dtype=np.int32)
