"""Images as a loader sees them: an image set, images given by path, and one that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.index.folders import read_size
from pipeline.data.index.headers import header_of
from pipeline.data.index.survey import Split

PADDING_LABEL = -1
"""Label of a position past the end of the validation set; every count and loss ignores it."""
UNREADABLE_LABEL = -2
"""Label of an excluded validation image, shown as another one: counts as wrong, has no loss."""


class BadImage(ValueError):
    """An image that cannot be used: `path`, and the `reason` in words.

    `path` is as `Manifest.path` gives it. `changed` says that it is not what was scanned, so that
    restoring the original repairs the data set; an image that was bad from the start is part of
    the data hash.
    """

    def __init__(self, path: Path, reason: str, changed: bool = False) -> None:
        """Keep all fields; they are also the arguments, so the error survives pickling."""
        super().__init__(path, reason, changed)
        self.path = path
        self.reason = reason
        self.changed = changed

    def __str__(self) -> str:
        """Name the file and the reason."""
        return f"the image {self.path} cannot be used: {self.reason}"


class ImageSet(Protocol):
    """N images with labels, in an order that every rank sees alike.

    split: which part. classes: names; labels index it. digest: the data hash, hex digits. labels
    (N,) int32; widths and heights (N,) int32 pixels, 0 for a file whose header is not decoded.
    """

    @property
    def split(self) -> Split:
        """Name of the part of the data set."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""

    @property
    def digest(self) -> str:
        """The data hash: the same for the same images, labels and class names."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """Labels (N,) int32."""

    @property
    def widths(self) -> NDArray[np.int32]:
        """(N,) pixels."""

    @property
    def heights(self) -> NDArray[np.int32]:
        """(N,) pixels."""

    def __len__(self) -> int:
        """Number of images."""

    def path(self, index: int) -> Path:
        """The place of image `index`, for a message."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """The input of the decoder: the whole encoded file (bytes,), or, where nothing is encoded,
        the pixels (H, W, 3). Raises `BadImage`; may be called by several threads at once."""


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
        return _bytes_of(self.path(index))


def _size(path: Path) -> tuple[int, int]:
    try:
        _, width, height = read_size(os.fsencode(path))
    except OSError as error:
        raise _unreadable(path, error) from error
    if width == 0:
        flaw = header_of(_bytes_of(path).tobytes()).flaw
        raise BadImage(path, f"{flaw}; give a JPEG, PNG, BMP, WebP or TIFF file")
    return width, height


def _bytes_of(path: Path) -> NDArray[np.uint8]:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BadImage:
    return BadImage(path, f"it cannot be read: {error.strerror}")
