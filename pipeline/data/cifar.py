"""CIFAR-10 as the two splits of a data set, its pixels in memory."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cifar_archive import SIDE, Archive, open_archive, read_batch, read_classes
from pipeline.data.index.survey import Split, name_few

log = logging.getLogger("trainyard")

_TRAIN_IMAGES, _TEST_IMAGES = 50_000, 10_000
_OFFICIAL_BATCHES, _OFFICIAL_BATCH = 5, 10_000
"""Training files of CIFAR-10, and the images in each of them. A file of that size is taken for one
of them, so that the others must be there; a set of one's own in this format, such as the drawn one
of `prepare mini`, is known by files of other sizes."""


@dataclass(frozen=True)
class Places:
    """Where N images lie: `rows` (N, 2) int32 has the number of each one's file and its row."""

    files: list[Path]
    rows: NDArray[np.int32]


@dataclass(eq=False)
class CifarImages:
    """The images of one split; an `ImageSet`.

    pixels: (N, 32, 32, 3) uint8. labels: (N,) int32. Images stand in the order of their batch files
    and rows, whichever archive they come from, and so does the data hash.
    """

    split: Split
    classes: list[str]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]
    places: Places

    def __post_init__(self) -> None:
        """All are squares of one size."""
        self.heights: NDArray[np.int32] = np.full(len(self.labels), SIDE, dtype=np.int32)
        self.widths = self.heights

    @functools.cached_property
    def digest(self) -> str:
        """The data hash, 64 hex digits."""
        summary = hashlib.sha256(f"cifar {json.dumps(self.classes)} {len(self)} ".encode())
        summary.update(self.labels.astype("<i4").tobytes())
        summary.update(self.pixels.tobytes())
        return summary.hexdigest()

    @property
    def batch_sizes(self) -> list[int]:
        """The number of these images in each of the batch files."""
        counts = np.bincount(self.places.rows[:, 0], minlength=len(self.places.files))
        return [int(count) for count in counts]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return `<archive>/<batch file>:<row>`."""
        number, row = self.places.rows[index]
        return Path(f"{self.places.files[number]}:{row}")

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels (32, 32, 3) of an image."""
        return np.asarray(self.pixels[index])

    def part(self, split: Split, chosen: NDArray[np.bool_]) -> CifarImages:
        """Return the `chosen` (N,) of these images, in the same order, as a split."""
        places = Places(self.places.files, self.places.rows[chosen])
        return CifarImages(split, self.classes, self.pixels[chosen], self.labels[chosen], places)


def open_cifar(
    root: Path, held_out: int | None, classes: Sequence[str] | None = None
) -> tuple[CifarImages, CifarImages]:
    """Return train and val of the archive at `root`; reads about 180 MB.

    With `held_out` the last held_out / classes training images of each class are val, and the test
    images are not used; with None the test images are val. `classes`, those of a training, must be
    the archive's.

    ValueError, with the cure, for an archive that is not CIFAR-10's or not whole, other classes,
    and a `held_out` that does not divide among the classes or leaves one without images.
    """
    archive = open_archive(root)
    own = read_classes(archive)
    if classes is not None and list(classes) != own:
        raise ValueError(
            f"{archive.place} has the classes {name_few(own)}, the training had "
            f"{name_few(classes)}; set data.root to the data of the training"
        )
    train = _read(archive, "train", archive.train(), own)
    if _OFFICIAL_BATCH in train.batch_sizes:
        archive.train(_OFFICIAL_BATCHES)
    test = _read(archive, "val", [archive.form.test], own)
    if (len(train), len(test)) != (_TRAIN_IMAGES, _TEST_IMAGES):
        log.warning(
            "warning: %s has %d training and %d test images, CIFAR-10 itself %d and %d; if it is "
            "to be CIFAR-10, copy its archive anew",
            archive.place, len(train), len(test), _TRAIN_IMAGES, _TEST_IMAGES,
        )  # fmt: skip
    if held_out is None:
        return train, test
    is_val = _last_of_each(train.labels, held_out, own)
    return train.part("train", ~is_val), train.part("val", is_val)


def _read(archive: Archive, split: Split, names: Sequence[str], classes: list[str]) -> CifarImages:
    """All images in the batch files `names`."""
    batches = [read_batch(archive, name, len(classes)) for name in names]
    counts = [len(labels) for _, labels in batches]
    rows = np.stack(
        [np.repeat(np.arange(len(names)), counts), np.concatenate(list(map(np.arange, counts)))],
        axis=1,
    )
    return CifarImages(
        split,
        classes,
        np.concatenate([pixels for pixels, _ in batches]),
        np.concatenate([labels for _, labels in batches]),
        Places([archive.place / name for name in names], rows.astype(np.int32)),
    )


def _last_of_each(
    labels: NDArray[np.int32], held_out: int, classes: Sequence[str]
) -> NDArray[np.bool_]:
    """Which images (N,) are the last held_out / classes of their class."""
    share, rest = divmod(held_out, len(classes))
    if rest:
        raise ValueError(
            f"data.held_out={held_out} must be a multiple of the {len(classes)} classes, so that "
            "each holds out as many"
        )
    is_val = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(classes):
        own = np.flatnonzero(labels == label)
        if len(own) <= share:
            raise ValueError(
                f"data.held_out={held_out} takes {share} images of each class and {name} has only "
                f"{len(own)}; lower it"
            )
        is_val[own[-share:]] = True
    return is_val
