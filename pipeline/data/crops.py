"""Crop plans, computed in numpy: which part of each image is taken, and its output size.

A planner turns image sizes and random words into a `Plan`; `pipeline.data.dali` executes it.
`DataConfig` has checked the parameters of a planner.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.order import between, draws_of

Place = Literal["centre", "top left", "top right", "bottom left", "bottom right"]
PLACES: tuple[Place, ...] = ("centre", "top left", "top right", "bottom left", "bottom right")

Sides = NDArray[np.int64]
"""Heights or widths of images (B,) in pixels, at least 1."""
Floats = NDArray[np.float64]

_TRIES = 10  # torchvision's RandomResizedCrop gives up after ten


@dataclass(frozen=True, eq=False)
class Plan:
    """Crop, flip and colour offset of each image in a batch of B; every array is C-contiguous.

    boxes: (B, 4) float32 (y, x, h, w) in source pixels, inside the image and at least 1 pixel a
    side; those of `PaddedCrop` may reach beyond it.
    flips: (B,) int32, 1 to mirror left-right.
    offsets: (B, 3) float32 added to R, G and B in 0..255 units.
    shape: height and width of every output in pixels.
    operations, strengths: (B, K) int32 and float64, what is done to the mirrored pixels one after
    the other, as `augmentations` has it; None: nothing.
    erased: (B, 4) int32 (y, x, h, w) in pixels of the output, inside it, what is erased of the
    normalised pixels; without area where nothing is; None: nothing anywhere.
    """

    boxes: NDArray[np.float32]
    flips: NDArray[np.int32]
    offsets: NDArray[np.float32]
    shape: tuple[int, int]
    operations: NDArray[np.int32] | None = None
    strengths: NDArray[np.float64] | None = None
    erased: NDArray[np.int32] | None = None


class Planner(ABC):
    """A kind of view: plans its boxes, and, where random, mirroring and colour."""

    words_per_position: ClassVar[int] = 0
    """Random words for each position: a multiple of 4, 0 if nothing is random."""
    mirror: bool = False
    """Whether every view is mirrored; ignored where that is random."""

    def plan(
        self,
        heights: NDArray[np.int32],
        widths: NDArray[np.int32],
        words: NDArray[np.uint64] | None = None,
    ) -> Plan:
        """Plan B images of the given sizes (B,) with their random words (B, words_per_position).

        `words` are None where nothing is random. A side of 0 is taken for 1 pixel.
        """
        high, wide = _sides(heights), _sides(widths)
        draws = np.empty((0, len(high))) if words is None else draws_of(words)
        assert len(draws) == self.words_per_position, f"{len(draws)} words a position"
        return Plan(
            self._boxes(high, wide, draws),
            self._flips(draws),
            self._offsets(draws),
            self._shape(high, wide),
        )

    # `draws` are uniform numbers (words_per_position, B), a row for each decision.

    @abstractmethod
    def _boxes(self, high: Sides, wide: Sides, draws: Floats) -> NDArray[np.float32]: ...

    @abstractmethod
    def _shape(self, high: Sides, wide: Sides) -> tuple[int, int]: ...

    def _flips(self, draws: Floats) -> NDArray[np.int32]:
        return np.full(draws.shape[1], self.mirror, dtype=np.int32)

    def _offsets(self, draws: Floats) -> NDArray[np.float32]:
        return np.zeros((draws.shape[1], 3), dtype=np.float32)


@dataclass(frozen=True)
class _Square(Planner):
    """Views of `size` pixels a side."""

    size: int = 224

    def _shape(self, high: Sides, wide: Sides) -> tuple[int, int]:
        return self.size, self.size


@dataclass(frozen=True)
class _RandomCrop(_Square):
    """A view that is mirrored with probability 1/2, unless `flip` is False."""

    flip: bool = field(default=True, kw_only=True)

    _flip_row: ClassVar[int]  # of the draws

    def _flips(self, draws: Floats) -> NDArray[np.int32]:
        return np.asarray((draws[self._flip_row] < 0.5) & self.flip, dtype=np.int32)


@dataclass(frozen=True)
class _ColouredCrop(_RandomCrop):
    """A view with AlexNet's colour offset, whose four draws follow the one for mirroring.

    `color_std` is the standard deviation of its coefficients (`None`: no offset; the paper: 0.1),
    `normalisation` has its axes.
    """

    color_std: float | None = field(default=None, kw_only=True)
    normalisation: Normalisation = field(default=IMAGENET, repr=False, kw_only=True)

    def _offsets(self, draws: Floats) -> NDArray[np.float32]:
        """Return the offset (B, 3) in 0..255 units.

        Krizhevsky 2012, section 4.1: the sum over components of eigenvector * eigenvalue *
        N(0, std).
        """
        if self.color_std is None:
            return super()._offsets(draws)
        draws = draws[self._flip_row + 1 : self._flip_row + 5]
        # Two Box-Muller pairs, of which three normals are used; 1 - draw is in (0, 1], where the
        # logarithm is finite.
        radius = np.sqrt(-2.0 * np.log(1.0 - draws[0:2]))
        angle = 2.0 * np.pi * draws[2:4]
        normals = (*(radius * np.cos(angle)), radius[0] * np.sin(angle[0]))
        # Summed term by term: a matrix product may round by the size of the batch.
        axes = self.normalisation.color_axes
        terms = [n[:, None] * self.color_std * row for n, row in zip(normals, axes, strict=True)]
        return np.asarray(terms[0] + terms[1] + terms[2], dtype=np.float32)


@dataclass(frozen=True)
class RandomResizedCrop(_ColouredCrop):
    """A random area and aspect ratio, resized to a square; torchvision's definition (Szegedy 2014).

    Ten tries for a box of integer sides, each with its own words; if none fits, the largest
    central box of a permitted aspect. `area` is a fraction of the image, `aspect` is width /
    height.
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    # Words: area and aspect of each try, y, x, flip, colour, one spare.
    words_per_position: ClassVar[int] = 28
    _flip_row: ClassVar[int] = 22

    def _boxes(self, high: Sides, wide: Sides, draws: Floats) -> NDArray[np.float32]:
        box_high, box_wide = self._box_sides(high, wide, draws[:_TRIES], draws[_TRIES : 2 * _TRIES])
        fits = box_high > 0
        central_high, central_wide = self._central_sides(high, wide)
        box_high = np.where(fits, box_high, central_high)
        box_wide = np.where(fits, box_wide, central_wide)
        y_room, x_room = high - box_high, wide - box_wide
        y = np.where(fits, np.floor(draws[20] * (y_room + 1)), y_room // 2)
        x = np.where(fits, np.floor(draws[21] * (x_room + 1)), x_room // 2)
        return np.stack([y, x, box_high, box_wide], axis=1).astype(np.float32)

    def _box_sides(
        self, high: Sides, wide: Sides, area_draws: Floats, aspect_draws: Floats
    ) -> tuple[Floats, Floats]:
        """Return the sides (B,) of each image's first try that fits, 0 where none does."""
        areas = high * wide * between(area_draws, *self.area)
        log_aspect = between(aspect_draws, math.log(self.aspect[0]), math.log(self.aspect[1]))
        aspects = np.exp(log_aspect)
        try_high = np.rint(np.sqrt(areas / aspects))
        try_wide = np.rint(np.sqrt(areas * aspects))
        fits = (try_high > 0) & (try_high <= high) & (try_wide > 0) & (try_wide <= wide)
        first = np.argmax(fits, axis=0)
        image = np.arange(len(high))
        any_fits = fits[first, image]
        return try_high[first, image] * any_fits, try_wide[first, image] * any_fits

    def _central_sides(self, high: Sides, wide: Sides) -> tuple[Floats, Floats]:
        """Return the sides (B,) of the largest box with a permitted aspect."""
        box_high = np.minimum(high, np.maximum(1, np.rint(wide / self.aspect[0])))
        box_wide = np.minimum(wide, np.maximum(1, np.rint(high * self.aspect[1])))
        return box_high, box_wide


@dataclass(frozen=True)
class ScaleJitter(_ColouredCrop):
    """The paper's training crop (section 3.4): a random shorter side, then a random square crop.

    The image is resized so that its shorter side has s pixels, s an integer drawn uniformly from
    `short_side` (both ends included), and cropped at a random whole pixel of the resized image.
    The plan holds that crop in source pixels: `size / s` of the shorter side.
    """

    short_side: tuple[int, int] = (256, 480)

    # Words: shorter side, y, x, flip, colour.
    words_per_position: ClassVar[int] = 8
    _flip_row: ClassVar[int] = 3

    def _boxes(self, high: Sides, wide: Sides, draws: Floats) -> NDArray[np.float32]:
        least, most = self.short_side
        short_sides = least + np.floor(draws[0] * (most - least + 1)).astype(np.int64)
        resized = _resized_sides(high, wide, short_sides)
        corners = [
            np.floor(draw * (side - self.size + 1))
            for draw, side in zip(draws[1:3], resized, strict=True)
        ]
        return _source_boxes((high, wide), resized, corners, self.size)


@dataclass(frozen=True)
class PaddedCrop(_RandomCrop):
    """CIFAR's training crop (section 4.2): `padding` pixels on each side, then a random crop.

    Boxes are whole pixels relative to the image, none of whose sides is below `size`; those of an
    image of `size` pixels begin from -padding to padding. What lies beyond the image is zero after
    the mean is subtracted.
    """

    size: int = 32
    padding: int = 4

    # Words: y, x, flip, one spare.
    words_per_position: ClassVar[int] = 4
    _flip_row: ClassVar[int] = 2

    def _boxes(self, high: Sides, wide: Sides, draws: Floats) -> NDArray[np.float32]:
        boxes = np.full((len(high), 4), self.size, dtype=np.float32)
        for axis, sides in enumerate((high, wide)):
            room = sides - self.size + 2 * self.padding
            boxes[:, axis] = np.floor(draws[axis] * (room + 1)) - self.padding
        return boxes


@dataclass(frozen=True)
class CenterCrop(_Square):
    """The validation view: shorter side to `resize` pixels, then the central square of `size`.

    Sides and crop position are rounded as torchvision's Resize(resize) and CenterCrop(size) do.
    """

    resize: int = 256

    def _boxes(self, high: Sides, wide: Sides, draws: Floats) -> NDArray[np.float32]:
        resized = _resized_sides(high, wide, np.int64(self.resize))
        corners = [np.rint((side - self.size) / 2) for side in resized]
        return _source_boxes((high, wide), resized, corners, self.size)


@dataclass(frozen=True)
class Crop(CenterCrop):
    """The same square at another `place` of the resized image, or mirrored: a test view."""

    place: Place = "centre"
    mirror: bool = False

    def _boxes(self, high: Sides, wide: Sides, draws: Floats) -> NDArray[np.float32]:
        boxes = super()._boxes(high, wide, draws)
        if self.place != "centre":
            down, across = self.place.split()
            for axis, sides, at_end in ((0, high, down == "bottom"), (1, wide, across == "right")):
                latest = _latest(sides, boxes[:, axis + 2])
                boxes[:, axis] = _at_most(latest, latest) if at_end else 0
        return boxes


@dataclass(frozen=True)
class WholeImage(Planner):
    """The whole image, its shorter side resized to `short_side` pixels, mirrored or not.

    The longer side is truncated, as torchvision's Resize(short_side) does. Images that are planned
    together must give views of one shape. Also CIFAR's validation view, where nothing is resized.
    """

    short_side: int
    mirror: bool = False

    def shapes(self, heights: NDArray[np.int32], widths: NDArray[np.int32]) -> tuple[Sides, Sides]:
        """Return height and width in pixels of the views of images of the given sizes (B,)."""
        return _resized_sides(_sides(heights), _sides(widths), np.int64(self.short_side))

    def _boxes(self, high: Sides, wide: Sides, draws: Floats) -> NDArray[np.float32]:
        return whole_boxes(high, wide)

    def _shape(self, high: Sides, wide: Sides) -> tuple[int, int]:
        high, wide = _resized_sides(high, wide, np.int64(self.short_side))
        assert (high == high[0]).all() and (wide == wide[0]).all(), "views of several shapes"
        return int(high[0]), int(wide[0])


def whole_boxes(heights: NDArray[np.integer], widths: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the boxes (B, 4) of whole images of the given sizes (B,) in pixels, at least 1."""
    boxes = np.zeros((len(heights), 4), dtype=np.float32)
    boxes[:, 2], boxes[:, 3] = np.maximum(heights, 1), np.maximum(widths, 1)
    return boxes


def _sides(pixels: NDArray[np.int32]) -> Sides:
    # int64: the area of the largest JPEG, 65,500 pixels a side, does not fit 32 bits.
    return np.maximum(pixels, 1).astype(np.int64)


def _resized_sides(high: Sides, wide: Sides, short_side: Sides | np.int64) -> tuple[Sides, Sides]:
    """Return the sides (B,) once the shorter is `short_side`; the longer is truncated."""
    shorter = np.minimum(high, wide)
    return short_side * high // shorter, short_side * wide // shorter


def _source_boxes(
    sides: tuple[Sides, Sides], resized: tuple[Sides, Sides], corners: Sequence[Floats], size: int
) -> NDArray[np.float32]:
    """Return boxes (B, 4) in source pixels of square crops of resized images; pairs are (y, x)."""
    spans = [
        _span(corner * side / resized_side, size * side / resized_side, side)
        for side, resized_side, corner in zip(sides, resized, corners, strict=True)
    ]
    (y, high), (x, wide) = spans
    return np.stack([y, x, high, wide], axis=1)


def _span(
    start: Floats, extent: Floats, side: Sides
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return start and extent as float32, widened to 1 pixel about the middle, inside 0..side.

    The bound holds for the float32 values themselves, so that ceil(start + extent) <= side.
    """
    extent_f32 = np.maximum(extent, 1.0).astype(np.float32)
    latest = _latest(side, extent_f32)
    middle = start + extent / 2
    return _at_most(np.clip(middle - np.maximum(extent, 1.0) / 2, 0.0, latest), latest), extent_f32


def _latest(sides: Sides, extents: NDArray[np.float32]) -> Floats:
    """Return the start of boxes (B,) that end with the image."""
    return np.asarray(sides - extents.astype(np.float64), dtype=np.float64)


def _at_most(start: Floats, latest: Floats) -> NDArray[np.float32]:
    """Return `start` (B,) as float32 that rounding has not carried past `latest` (B,)."""
    rounded = start.astype(np.float32)
    past = rounded > latest
    rounded[past] = np.nextafter(rounded[past], np.float32(-1.0))
    return rounded
