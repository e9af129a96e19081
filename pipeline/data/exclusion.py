"""Images that a run goes on without, because their files cannot be used.

The number of images and the data hash stay as they are. In training an exclusion holds from a
position on: a position whose image is excluded takes the next image of that epoch's order that is
not, and every other position keeps its own. In validation an excluded image counts as wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray


class Exclusions:
    """Excluded training images, each with the position from which it is. Never changes."""

    def __init__(self, since: Mapping[int, int] | None = None) -> None:
        self._since = dict(sorted((since or {}).items()))
        self._images = np.array(list(self._since), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._since)

    def __repr__(self) -> str:
        """The same text for the same exclusions, as the digest over ranks needs it."""
        return f"Exclusions({self._since})"

    def extended(self, found: Iterable[tuple[int, int]]) -> Exclusions:
        """These and `found`, pairs of (image, position); of two positions the first one holds."""
        since = dict(self._since)
        for image, position in found:
            since[image] = min(position, since.get(image, position))
        return Exclusions(since)

    def pairs(self) -> list[tuple[int, int]]:
        """(image, position from which it is excluded), by image; for a checkpoint."""
        return list(self._since.items())

    def holds(self, image: int, position: int) -> bool:
        """Whether `image` may not be taken at `position`."""
        since = self._since.get(image)
        return since is not None and position >= since

    def places(self, images: NDArray[np.int64], positions: NDArray[np.int64]) -> list[int]:
        """Where in a batch, images and positions (B,) int64, an excluded image stands."""
        candidates = np.flatnonzero(np.isin(images, self._images))
        return [int(i) for i in candidates if self.holds(int(images[i]), int(positions[i]))]

    def replacement(self, order: NDArray[np.int32], place: int, position: int) -> int:
        """The image that `position`, entry `place` of an epoch's `order` (N,), takes instead.

        Raises ValueError if no image is left.
        """
        for step in range(1, len(order)):
            image = int(order[(place + step) % len(order)])
            if not self.holds(image, position):
                return image
        raise ValueError(f"all {len(order)} training images are excluded; see the data set")
