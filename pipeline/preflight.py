"""What is checked before the first step, because it costs seconds and saves days."""

from __future__ import annotations

import logging
from contextlib import closing

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.augment import CenterCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.manifest import BadImage, Manifest
from pipeline.data.stream import Selection
from pipeline.failure import TrainingError

log = logging.getLogger("trainyard")

# (classes, training images, validation images) of ILSVRC 2012 as its archives hold them.
IMAGENET_1K = (1000, 1_281_167, 50_000)
# Top-1 on training and on validation between which no honest classifier of 1000 classes lies.
_LEARNED, _GUESSED = 0.05, 0.003
_MANY_CLASSES = 100


def require_complete(config: DataConfig, train_set: Manifest, val_set: Manifest) -> None:
    """Raises `ValueError` if data.dataset names a data set and this is not all of it."""
    if config.dataset is None:
        return
    names = ("classes", "training images", "validation images")
    found = (len(train_set.classes), len(train_set), len(val_set))
    wrong = [
        f"{has:,} {name} instead of {wanted:,}"
        for name, has, wanted in zip(names, found, IMAGENET_1K, strict=True)
        if has != wanted
    ]
    if wrong:
        raise ValueError(
            f"{config.root} is not the whole of {config.dataset}: {', '.join(wrong)}; complete it, "
            "or set data.dataset=null for another data set"
        )


def labels_look_permuted(train_top1: float, val_top1: float, classes: int) -> bool:
    """Whether a network that has learned its training labels does no better than guessing on val.

    Both are fractions. That is what labels in another order in val look like: the archives number
    classes otherwise than the sorted names do.
    """
    return classes >= _MANY_CLASSES and train_top1 > _LEARNED and val_top1 < _GUESSED


def decode_largest(manifest: Manifest, config: DataConfig, decode: DecodeSettings) -> None:
    """Decodes one full batch of the largest images on this rank's decoder, so that lack of memory
    shows now and not in the middle of an epoch.

    Files that cannot be used are left for their turn. Raises `TrainingError` with the cure.
    """
    batch = min(config.local_batch_size, len(manifest))
    pixels = manifest.widths.astype(np.int64) * manifest.heights
    largest = np.argpartition(pixels, len(pixels) - batch)[-batch:].astype(np.int64)
    stream = _Given(manifest, CenterCrop(config.image_size, config.val_resize))
    try:
        loader = Loader(stream, [largest], 1, batch, config.image_size, decode)
        with closing(loader):
            next(loader)
    except BadImage:
        return
    except (RuntimeError, MemoryError) as error:
        index = int(largest[np.argmax(pixels[largest])])
        raise TrainingError(
            f"a batch of the {batch} largest images, up to {manifest.widths[index]} x "
            f"{manifest.heights[index]} pixels ({manifest.path(index)}), cannot be decoded: "
            f"{error} or data.val_resize, or set data.decode=cpu"
        ) from error


class _Given:
    """A stream whose positions are image numbers."""

    def __init__(self, manifest: Manifest, planner: CenterCrop) -> None:
        self.manifest = manifest
        self._planner = planner

    def select(self, positions: np.ndarray) -> Selection:
        """The centre of each image; one without a size is taken as the smallest there is."""
        heights = np.maximum(self.manifest.heights[positions], 1)
        widths = np.maximum(self.manifest.widths[positions], 1)
        words = np.empty((len(positions), 0), dtype=np.uint64)
        labels = np.asarray(self.manifest.labels[positions], dtype=np.int64)
        return Selection(positions, positions, labels, self._planner.plan(heights, widths, words))
