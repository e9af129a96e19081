"""What stands at each position: image, label and crop, as a pure function of (seed, position).

Everything downstream (DALI, world size, restarts) only executes what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.crops import (
    CenterCrop,
    PaddedCrop,
    Plan,
    Planner,
    RandomResizedCrop,
    ScaleJitter,
    Untouched,
)
from pipeline.data.exclusion import Exclusions
from pipeline.data.images import PADDING_LABEL, UNREADABLE_LABEL, BadImage, GivenImages, ImageSet
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.order import GlobalOrder, Stream, random_words


@dataclass(frozen=True)
class Selection:
    """The images of a batch and how each is cut.

    `positions`, `images` and `labels` are (B,) int64; `plan` covers the same batch in order.
    """

    positions: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    plan: Plan


class ImageStream(Protocol):
    """Maps positions to what must be decoded."""

    manifest: ImageSet

    def select(self, positions: np.ndarray) -> Selection:
        """The selection at `positions`, (B,) int64. Raises `BadImage` for one without a size."""
        ...


def train_planner(config: DataConfig, normalisation: Normalisation = IMAGENET) -> Planner:
    """The training crop that the configuration asks for; `normalisation` has the colour axes."""
    if config.train_crop == "padded":
        return PaddedCrop(config.image_size, config.padding, config.flip)
    if config.train_crop == "scale_jitter":
        return ScaleJitter(
            config.image_size, config.short_side, config.flip, config.color_std, normalisation
        )
    return RandomResizedCrop(
        config.image_size,
        area=config.area,
        flip=config.flip,
        color_std=config.color_std,
        normalisation=normalisation,
    )


def val_planner(config: DataConfig) -> Planner:
    """The view of validation: the image's centre, or for cifar-10 the whole image."""
    if config.dataset == "cifar-10":
        return Untouched(config.image_size)
    return CenterCrop(config.image_size, config.val_resize)


class TrainStream:
    """Shuffled epochs without end; positions cross epoch boundaries freely."""

    def __init__(self, manifest: ImageSet, planner: Planner, seed: int):
        self.manifest = manifest
        self.planner = planner
        self.seed = seed
        self.order = GlobalOrder(len(manifest), seed)
        self.exclusions = Exclusions()

    def images(self, positions: np.ndarray) -> np.ndarray:
        """The images at `positions`, both (B,) int64, as things stand."""
        return cast(np.ndarray, self.order.images(positions, self.exclusions))

    def select(self, positions: np.ndarray) -> Selection:
        """Positions must be consecutive and rising, as every chunk is."""
        images = self.images(positions)
        heights, widths = _sizes(self.manifest, images)
        words = random_words(
            self.seed,
            Stream.AUGMENT,
            int(positions[0]),
            len(positions),
            self.planner.words_per_position,
        )
        labels = np.asarray(self.manifest.labels[images], dtype=np.int64)
        return Selection(positions, images, labels, self.planner.plan(heights, widths, words))


class ValStream:
    """Position p is image p; positions past the end repeat the last image under label -1."""

    def __init__(self, manifest: ImageSet, planner: Planner):
        self.manifest = manifest
        self.planner = planner
        self.excluded: frozenset[int] = frozenset()

    def images(self, positions: np.ndarray) -> np.ndarray:
        """The images at `positions`, both (B,) int64: their own, or the next that can be read."""
        count = len(self.manifest)
        images: np.ndarray = np.minimum(positions, count - 1)
        for i, image in enumerate(images) if self.excluded else ():
            around = ((int(image) + step) % count for step in range(count))
            images[i] = next((one for one in around if one not in self.excluded), -1)
        if len(images) and images.min() < 0:
            raise ValueError(f"all {count} validation images are excluded; see the data set")
        return images

    def select(self, positions: np.ndarray) -> Selection:
        """Positions in [0, N) are images; those from N on are padding."""
        images = self.images(positions)
        heights, widths = _sizes(self.manifest, images)
        labels = self.manifest.labels[images].astype(np.int64)
        labels[images != np.minimum(positions, len(self.manifest) - 1)] = UNREADABLE_LABEL
        labels[positions >= len(self.manifest)] = PADDING_LABEL
        words = np.empty((len(positions), 0), dtype=np.uint64)
        return Selection(positions, images, labels, self.planner.plan(heights, widths, words))


def _sizes(manifest: ImageSet, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heights, widths = manifest.heights[images], manifest.widths[images]
    unknown = np.flatnonzero((heights == 0) | (widths == 0))
    if len(unknown):
        # Reading gives the precise reason: empty, unreadable or not an image.
        image = int(images[unknown[0]])
        manifest.read(image)
        raise BadImage(manifest.path(image), "no image header")
    return heights, widths


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
