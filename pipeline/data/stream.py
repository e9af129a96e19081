"""Image, label and crop at each position, as a pure function of (seed, position).

Everything downstream (DALI, world size, restarts) only executes what is decided here.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.crops import (
    CenterCrop,
    PaddedCrop,
    Plan,
    Planner,
    RandomResizedCrop,
    ScaleJitter,
    WholeImage,
)
from pipeline.data.effects import NOTHING, Effects, train_effects
from pipeline.data.exclusion import Exclusions, Found
from pipeline.data.images import PADDING_LABEL, UNREADABLE_LABEL, BadImage, ImageSet
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.order import GlobalOrder, Order, Stream, random_words
from pipeline.data.sampling import make_order
from pipeline.data.sizes import Sizes


@dataclass(frozen=True)
class Selection:
    """The images of a batch and how each is cut.

    `positions`, `images` and `labels` are (B,) int64; `plan` covers the same batch in order.
    """

    positions: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    plan: Plan


class ImageStream(ABC):
    """The selection at each position of `image_set`, cropped as `planner` says."""

    effects: Effects = NOTHING
    """What happens to the views beyond that."""

    def __init__(self, image_set: ImageSet, planner: Planner) -> None:
        self.image_set = image_set
        self.planner = planner

    @abstractmethod
    def images(self, positions: np.ndarray) -> np.ndarray:
        """The images at `positions`, both (B,) int64, with the exclusions so far."""

    def select(self, positions: np.ndarray) -> Selection:
        """The selection at `positions`, (B,) int64. Raises `BadImage` for one without a size."""
        images = self.images(positions)
        known = (self.image_set.heights[images] > 0) & (self.image_set.widths[images] > 0)
        if not known.all():
            # Reading gives the precise reason: empty, unreadable or not an image.
            image = int(images[np.argmin(known)])
            self.image_set.read(image)
            raise BadImage(self.image_set.path(image), "no image header")
        labels, plan = self._labels(positions, images), self._plan(positions, images)
        return Selection(positions, images, labels, plan)

    def locate(self, error: Exception, positions: np.ndarray) -> Found | None:
        """The image that made the batch at `positions` (B,) fail with `error`.

        None if nothing is to be excluded: a file that could not be read or was changed after the
        scan is good again once it is restored.
        """
        if not isinstance(error, BadImage) or error.changed:
            return None
        for position, image in zip(positions, self.images(positions), strict=True):
            if self.image_set.path(int(image)) == error.path:
                return Found(int(image), int(position), str(error))
        return None

    def _labels(self, positions: np.ndarray, images: np.ndarray) -> np.ndarray:
        return np.asarray(self.image_set.labels[images], dtype=np.int64)

    def _words(self, positions: np.ndarray) -> np.ndarray | None:
        """The planner's random words (B, words_per_position), if it takes any."""
        return None

    def _plan(self, positions: np.ndarray, images: np.ndarray) -> Plan:
        heights, widths = self.image_set.heights[images], self.image_set.widths[images]
        return self._planner_at(positions).plan(heights, widths, self._words(positions))

    def _planner_at(self, positions: np.ndarray) -> Planner:
        """What cuts the images at `positions`."""
        return self.planner


class TrainStream(ImageStream):
    """Endless epochs in `order` (None: shuffled), whose boundaries a batch may cross.

    The positions of a selection must be consecutive and rising, as every chunk's are, and with
    `sizes`, which crops have in place of the planner's, of one step. `train_stream` makes the
    stream that a configuration asks for.
    """

    def __init__(
        self, image_set: ImageSet, planner: Planner, seed: int, *, effects: Effects = NOTHING,
        order: Order | None = None, sizes: Sizes | None = None,
    ):  # fmt: skip
        super().__init__(image_set, planner)
        self.seed, self.effects = seed, effects
        self._sizes = sizes
        self.order = GlobalOrder(len(image_set), seed) if order is None else order
        self.exclusions = Exclusions()

    def images(self, positions: np.ndarray) -> np.ndarray:
        """The images at `positions`, both (B,) int64, with the exclusions so far."""
        return self.exclusions.images(self.order, positions)

    def _planner_at(self, positions: np.ndarray) -> Planner:
        if self._sizes is None:
            return self.planner
        assert isinstance(self.planner, RandomResizedCrop | ScaleJitter), "a crop without a size"
        return dataclasses.replace(self.planner, size=self._sizes.at(int(positions[0])))

    def _words(self, positions: np.ndarray) -> np.ndarray:
        first, count = int(positions[0]), len(positions)
        words = self.planner.words_per_position
        return random_words(self.seed, Stream.AUGMENT, first, count, words)

    def _plan(self, positions: np.ndarray, images: np.ndarray) -> Plan:
        return self.effects.planned(super()._plan(positions, images), self.seed, positions)


class ValStream(ImageStream):
    """The validation order: position p is image p; positions past the end repeat the last image
    with label -1."""

    def __init__(self, image_set: ImageSet, planner: Planner):
        super().__init__(image_set, planner)
        self.excluded: frozenset[int] = frozenset()

    def images(self, positions: np.ndarray) -> np.ndarray:
        """The images at `positions`, both (B,) int64: their own, or the next that can be read."""
        count = len(self.image_set)
        images: np.ndarray = np.minimum(positions, count - 1)
        for i, image in enumerate(images) if self.excluded else ():
            around = ((int(image) + step) % count for step in range(count))
            images[i] = next((one for one in around if one not in self.excluded), -1)
        if len(images) and images.min() < 0:
            raise ValueError(f"all {count} validation images are excluded; see the data set")
        return images

    def _labels(self, positions: np.ndarray, images: np.ndarray) -> np.ndarray:
        labels = super()._labels(positions, images)
        labels[images != np.minimum(positions, len(self.image_set) - 1)] = UNREADABLE_LABEL
        labels[positions >= len(self.image_set)] = PADDING_LABEL
        return labels


def train_stream(
    image_set: ImageSet, config: DataConfig, seed: int, normalisation: Normalisation = IMAGENET,
    sizes: Sizes | None = None,
) -> TrainStream:  # fmt: skip
    """The training of `image_set` that the configuration asks for, with crops of growing `sizes` if
    they are given.

    Raises `ValueError` for a class without images where each has its turn.
    """
    planner, order = train_planner(config, normalisation), make_order(image_set, config, seed)
    effects = train_effects(config)
    return TrainStream(image_set, planner, seed, effects=effects, order=order, sizes=sizes)


def train_planner(config: DataConfig, normalisation: Normalisation = IMAGENET) -> Planner:
    """The training crop that the configuration asks for, of growing sizes with the largest;
    `normalisation` has the colour axes."""
    if config.train_crop == "padded":
        return PaddedCrop(config.train_size, config.padding, flip=config.flip)
    crop = (
        ScaleJitter(config.train_size, config.short_side)
        if config.train_crop == "scale_jitter"
        else RandomResizedCrop(config.train_size, config.area)
    )
    return dataclasses.replace(
        crop, flip=config.flip, color_std=config.color_std, normalisation=normalisation
    )


def val_planner(config: DataConfig) -> Planner:
    """The view of validation: the image's centre, or for cifar-10 the whole image."""
    if config.dataset == "cifar-10":
        return WholeImage(config.view_size)
    return CenterCrop(config.view_size, config.val_resize)


def largest_planner(config: DataConfig) -> Planner:
    """The view of validation, at the largest size that training and validation have."""
    size = max(config.view_size, config.train_size)
    if config.dataset == "cifar-10":
        return WholeImage(size)
    return CenterCrop(size, max(config.val_resize, size))
