"""What a run needs of the images of one split, whatever they lie in."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.survey import Split


class ImageSet(Protocol):
    """N images with labels, in an order that every rank sees alike.

    split: which part. classes: names; labels index it. digest: the data hash, hex digits. labels
    (N,) int32; widths and heights (N,) int32 pixels, 0 for a file without a readable header.
    """

    @property
    def split(self) -> Split:
        """Which part of the data set."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""

    @property
    def digest(self) -> str:
        """The data hash: the same for the same images, labels and class names."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,)."""

    @property
    def widths(self) -> NDArray[np.int32]:
        """(N,) pixels."""

    @property
    def heights(self) -> NDArray[np.int32]:
        """(N,) pixels."""

    def __len__(self) -> int:
        """Number of images."""

    def path(self, index: int) -> Path:
        """Where image `index` lies, for a message."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """What the decoder takes: the whole encoded file (bytes,), or where nothing is encoded the
        pixels (H, W, 3). Raises `BadImage`; may be called by several threads at once."""
