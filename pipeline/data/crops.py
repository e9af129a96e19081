"""Which part of each image is taken, and how large it becomes: plans, computed in numpy.

A planner turns image sizes and random words into a `Plan`; `pipeline.data.dali` executes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.order import uniform

_TRIES = 10  # torchvision's RandomResizedCrop gives up after ten
_COLOR_WORDS = 4  # two Box-Muller pairs, of which three normals are used


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do with each image of a batch of B; every array is C-contiguous.

    boxes: (B, 4) float32 (y, x, h, w) in source pixels, inside the image and at least 1 pixel a
    side; those of `padded.PaddedCrop` may reach beyond it.
    flips: (B,) int32, 1 to mirror left-right.
    offsets: (B, 3) float32 added to R, G and B in 0..255 units.
    shape: height and width of every output in pixels.
    """

    boxes: NDArray[np.float32]
    flips: NDArray[np.int32]
    offsets: NDArray[np.float32]
    shape: tuple[int, int]


class Planner(Protocol):
    """What the loader needs of an augmentation."""

    @property
    def words_per_position(self) -> int:
        """Random words each position owns: a multiple of 4, 0 if nothing is random."""

    @property
    def size(self) -> int:
        """Side of the square output in pixels."""

    def plan(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32], words: NDArray[np.uint64]
    ) -> Plan:
        """Plan B images of the given sizes (B,) with their random words (B, words_per_position)."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random area and aspect ratio, resized to a square; torchvision's definition (Szegedy 2014).

    Ten tries for a box of integer sides, each with its own words; if none fits, the largest
    central box of a permitted aspect. `area` is a fraction of the image, `aspect` is width /
    height, `color_std` the standard deviation of the colour offset's coefficients (`None`: no
    offset; the paper: 0.1), `normalisation` has its axes.
    """

    size: int = 224
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    color_std: float | None = None
    normalisation: Normalisation = field(default=IMAGENET, repr=False)

    # Words: area and aspect of each try, y, x, flip, colour, one spare.
    words_per_position: ClassVar[int] = 28

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        _check_common(self.size, self.color_std)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(
                f"data.area={self.area} must be two increasing fractions of the image in (0, 1]"
            )
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise ValueError(
                f"data.aspect={self.aspect} must be two increasing positive width / height ratios"
            )

    def plan(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32], words: NDArray[np.uint64]
    ) -> Plan:
        """Plan B images of the given sizes (B,) with their random words (B, 28)."""
        high, wide = _sides(heights), _sides(widths)
        draws = _draws(words, self.words_per_position)
        box_high, box_wide = self._box_sides(high, wide, draws[:_TRIES], draws[_TRIES : 2 * _TRIES])
        fits = box_high > 0
        central_high, central_wide = self._central_sides(high, wide)
        box_high = np.where(fits, box_high, central_high)
        box_wide = np.where(fits, box_wide, central_wide)
        y_room, x_room = high - box_high, wide - box_wide
        y = np.where(fits, np.floor(draws[20] * (y_room + 1)), y_room // 2)
        x = np.where(fits, np.floor(draws[21] * (x_room + 1)), x_room // 2)
        return Plan(
            boxes=np.stack([y, x, box_high, box_wide], axis=1).astype(np.float32),
            flips=_flips(draws[22], self.flip),
            offsets=_color_offsets(draws[23:27], self.color_std, self.normalisation.color_axes),
            shape=(self.size, self.size),
        )

    def _box_sides(
        self,
        high: NDArray[np.int64],
        wide: NDArray[np.int64],
        area_draws: NDArray[np.float64],
        aspect_draws: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the sides (B,) of each image's first try that fits, 0 where none does."""
        areas = high * wide * _between(area_draws, *self.area)
        log_aspect = _between(aspect_draws, math.log(self.aspect[0]), math.log(self.aspect[1]))
        aspects = np.exp(log_aspect)
        try_high = np.rint(np.sqrt(areas / aspects))
        try_wide = np.rint(np.sqrt(areas * aspects))
        fits = (try_high > 0) & (try_high <= high) & (try_wide > 0) & (try_wide <= wide)
        first = np.argmax(fits, axis=0)
        image = np.arange(len(high))
        any_fits = fits[first, image]
        return try_high[first, image] * any_fits, try_wide[first, image] * any_fits

    def _central_sides(
        self, high: NDArray[np.int64], wide: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the sides (B,) of the largest box with a permitted aspect."""
        box_high = np.minimum(high, np.maximum(1, np.rint(wide / self.aspect[0])))
        box_wide = np.minimum(wide, np.maximum(1, np.rint(high * self.aspect[1])))
        return box_high, box_wide


@dataclass(frozen=True)
class ScaleJitter:
    """The paper's training crop (section 3.4): a random shorter side, then a random square crop.

    The image is resized so that its shorter side has s pixels, s an integer drawn uniformly from
    `short_side` (both ends included), and cropped at a random whole pixel of the resized image.
    The plan holds that crop in source pixels: `size / s` of the shorter side. Colour as above.
    """

    size: int = 224
    short_side: tuple[int, int] = (256, 480)
    flip: bool = True
    color_std: float | None = None
    normalisation: Normalisation = field(default=IMAGENET, repr=False)

    # Words: shorter side, y, x, flip, colour.
    words_per_position: ClassVar[int] = 8

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        _check_common(self.size, self.color_std)
        if not self.size <= self.short_side[0] <= self.short_side[1]:
            raise ValueError(
                f"data.short_side={self.short_side} must be two increasing sides in pixels, none "
                f"below data.image_size={self.size}"
            )

    def plan(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32], words: NDArray[np.uint64]
    ) -> Plan:
        """Plan B images of the given sizes (B,) with their random words (B, 8)."""
        high, wide = _sides(heights), _sides(widths)
        draws = _draws(words, self.words_per_position)
        least, most = self.short_side
        short_sides = least + np.floor(draws[0] * (most - least + 1)).astype(np.int64)
        resized_high, resized_wide = _resized_sides(high, wide, short_sides)
        y = np.floor(draws[1] * (resized_high - self.size + 1))
        x = np.floor(draws[2] * (resized_wide - self.size + 1))
        return Plan(
            boxes=_source_boxes((high, wide), (resized_high, resized_wide), (y, x), self.size),
            flips=_flips(draws[3], self.flip),
            offsets=_color_offsets(draws[4:8], self.color_std, self.normalisation.color_axes),
            shape=(self.size, self.size),
        )


@dataclass(frozen=True)
class CenterCrop:
    """The validation view: shorter side to `resize` pixels, then the central square of `size`.

    Sides and crop position are rounded as torchvision's Resize(resize) and CenterCrop(size) do.
    """

    size: int = 224
    resize: int = 256

    words_per_position: ClassVar[int] = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        _check_common(self.size, None)
        if self.resize < self.size:
            raise ValueError(
                f"data.val_resize={self.resize} must not be below data.image_size={self.size}"
            )

    def plan(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32], words: NDArray[np.uint64]
    ) -> Plan:
        """Plan B images of the given sizes (B,); words is (B, 0), nothing is random."""
        high, wide = _sides(heights), _sides(widths)
        resized_high, resized_wide = _resized_sides(high, wide, np.int64(self.resize))
        y = np.rint((resized_high - self.size) / 2)
        x = np.rint((resized_wide - self.size) / 2)
        return Plan(
            boxes=_source_boxes((high, wide), (resized_high, resized_wide), (y, x), self.size),
            flips=np.zeros(len(high), dtype=np.int32),
            offsets=np.zeros((len(high), 3), dtype=np.float32),
            shape=(self.size, self.size),
        )


def _check_common(size: int, color_std: float | None) -> None:
    if size < 1:
        raise ValueError(f"data.image_size={size} must be at least 1 pixel")
    if color_std is not None and not 0 < color_std < math.inf:
        raise ValueError(
            f"data.color_std={color_std} must be a positive number, or null for no colour offset"
        )


def _sides(pixels: NDArray[np.int32]) -> NDArray[np.int64]:
    # int64: the area of the largest JPEG, 65,500 pixels a side, does not fit 32 bits.
    return np.maximum(pixels, 1).astype(np.int64)


def _draws(words: NDArray[np.uint64], words_per_position: int) -> NDArray[np.float64]:
    """Return uniform numbers (words_per_position, B), each decision's row contiguous.

    numpy may take another loop, and round exp or log otherwise, over strided numbers than over
    contiguous ones; a batch of one would be contiguous either way, and a position must not notice.
    """
    assert words.shape[1] == words_per_position, f"{words.shape} for {words_per_position} words"
    return uniform(np.ascontiguousarray(words.T))


def _between(draws: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return low + draws * (high - low)


def _flips(draws: NDArray[np.float64], enabled: bool) -> NDArray[np.int32]:
    return ((draws < 0.5) & enabled).astype(np.int32)


def _color_offsets(
    draws: NDArray[np.float64], std: float | None, axes: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return AlexNet's colour offset (B, 3) in 0..255 units from draws (4, B).

    Krizhevsky 2012, section 4.1: the sum over components of eigenvector * eigenvalue * N(0, std).
    """
    if std is None:
        return np.zeros((draws.shape[1], 3), dtype=np.float32)
    # Box-Muller; 1 - draw is in (0, 1], where the logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(1.0 - draws[0:2]))
    angle = 2.0 * np.pi * draws[2:4]
    normals = (*(radius * np.cos(angle)), radius[0] * np.sin(angle[0]))
    # Summed term by term: a matrix product may round by the size of the batch.
    terms = [normal[:, None] * std * row for normal, row in zip(normals, axes, strict=True)]
    return np.asarray(terms[0] + terms[1] + terms[2], dtype=np.float32)


def _resized_sides(
    high: NDArray[np.int64], wide: NDArray[np.int64], short_side: NDArray[np.int64] | np.int64
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sides (B,) once the shorter is `short_side`; the longer is truncated."""
    shorter = np.minimum(high, wide)
    return short_side * high // shorter, short_side * wide // shorter


def _source_boxes(
    sides: tuple[NDArray[np.int64], NDArray[np.int64]],
    resized: tuple[NDArray[np.int64], NDArray[np.int64]],
    corners: tuple[NDArray[np.float64], NDArray[np.float64]],
    size: int,
) -> NDArray[np.float32]:
    """Return boxes (B, 4) in source pixels of square crops of resized images; pairs are (y, x)."""
    spans = [
        _span(corner * side / resized_side, size * side / resized_side, side)
        for side, resized_side, corner in zip(sides, resized, corners, strict=True)
    ]
    (y, high), (x, wide) = spans
    return np.stack([y, x, high, wide], axis=1)


def _span(
    start: NDArray[np.float64], extent: NDArray[np.float64], side: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return start and extent as float32, widened to 1 pixel about the middle, inside 0..side.

    Inside holds for the float32 values themselves, so that ceil(start + extent) <= side.
    """
    extent_f32 = np.maximum(extent, 1.0).astype(np.float32)
    latest = side - extent_f32.astype(np.float64)
    middle = start + extent / 2
    start = np.clip(middle - np.maximum(extent, 1.0) / 2, 0.0, latest)
    start_f32 = start.astype(np.float32)
    past = start_f32 > latest
    start_f32[past] = np.nextafter(start_f32[past], np.float32(-1.0))
    return start_f32, extent_f32


@dataclass(frozen=True)
class PaddedCrop:
    """CIFAR's training crop (section 4.2): `padding` pixels on each side, then a random crop.

    Boxes are whole pixels relative to the image, and those of an image of `size` pixels begin from
    -padding to padding; what lies beyond the image is zero after the mean is subtracted.
    """

    size: int = 32
    padding: int = 4
    flip: bool = True

    # Words: y, x, flip, one spare.
    words_per_position: ClassVar[int] = 4

    def plan(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32], words: NDArray[np.uint64]
    ) -> Plan:
        """Plan B images of the given sizes (B,), none below `size`, with their words (B, 4)."""
        draws = uniform(np.ascontiguousarray(words.T))
        y, x = (
            np.floor(draw * (sides - self.size + 2 * self.padding + 1)) - self.padding
            for draw, sides in zip(draws[:2], (heights, widths), strict=True)
        )
        return _plan(y, x, self.size, ((draws[2] < 0.5) & self.flip).astype(np.int32))


@dataclass(frozen=True)
class Untouched:
    """CIFAR's validation view: the image as it is, `size` pixels a side."""

    size: int = 32

    words_per_position: ClassVar[int] = 0

    def plan(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32], words: NDArray[np.uint64]
    ) -> Plan:
        """Plan B images of `size` x `size`; words is (B, 0), nothing is random."""
        corner = np.zeros(len(heights))
        return _plan(corner, corner, self.size, np.zeros(len(heights), dtype=np.int32))


def _plan(
    y: NDArray[np.float64], x: NDArray[np.float64], size: int, flips: NDArray[np.int32]
) -> Plan:
    """The plan of square boxes that begin at y and x (B,)."""
    side = np.full(len(y), size, dtype=np.float64)
    return Plan(
        boxes=np.stack([y, x, side, side], axis=1).astype(np.float32),
        flips=flips,
        offsets=np.zeros((len(y), 3), dtype=np.float32),
        shape=(size, size),
    )
