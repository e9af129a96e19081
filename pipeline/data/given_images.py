"""Images given by their paths, as the loader takes them: nothing is scanned, nothing kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import CenterCrop
from pipeline.data.containers.common import Window
from pipeline.data.containers.headers import image_size
from pipeline.data.image_set import ImageSet
from pipeline.data.manifest import BadImage
from pipeline.data.stream import PADDING_LABEL, Selection
from pipeline.data.survey import Split


class GivenImages:
    """An `ImageSet` of files without known classes, in the order given.

    `labels` are all `PADDING_LABEL`, `classes` and `digest` empty.
    """

    split: Split = "val"

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the header of each file. BadImage for one that cannot be read or is no image."""
        self._paths = list(paths)
        sizes = np.array([_size(path) for path in self._paths], dtype=np.int32).reshape(-1, 2)
        self.widths: NDArray[np.int32] = np.ascontiguousarray(sizes[:, 0])
        self.heights: NDArray[np.int32] = np.ascontiguousarray(sizes[:, 1])
        self.labels: NDArray[np.int32] = np.full(len(self._paths), PADDING_LABEL, dtype=np.int32)
        self.classes: list[str] = []
        self.digest = ""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def path(self, index: int) -> Path:
        """Return the path of an image, as it was given."""
        return self._paths[int(index)]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the whole encoded image, (bytes,) uint8. BadImage if it cannot be read."""
        path = self.path(index)
        try:
            return np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise _unreadable(path, error) from error


class CentreStream:
    """The validation view of given images; positions are their numbers."""

    def __init__(self, images: GivenImages, planner: CenterCrop) -> None:
        self.manifest: ImageSet = images
        self._planner = planner

    def select(self, positions: np.ndarray) -> Selection:
        """Positions from the number of images on repeat the last one."""
        images = np.minimum(positions, len(self.manifest) - 1)
        heights, widths = self.manifest.heights[images], self.manifest.widths[images]
        words = np.empty((len(positions), 0), dtype=np.uint64)
        labels = self.manifest.labels[images].astype(np.int64)
        return Selection(positions, images, labels, self._planner.plan(heights, widths, words))


def _size(path: Path) -> tuple[int, int]:
    try:
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            size = image_size(Window(path, file.fileno(), length), 0, length) if length else (0, 0)
    except OSError as error:
        raise _unreadable(path, error) from error
    if size == (0, 0):
        reason = "no image header" if length else "the file is empty"
        raise BadImage(path, f"{reason}; give a JPEG, PNG, BMP, WebP or TIFF file")
    return size


def _unreadable(path: Path, error: OSError) -> BadImage:
    return BadImage(path, f"it cannot be read: {error.strerror}")
