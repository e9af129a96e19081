"""TrivialAugment and RandAugment: which operations change the pixels of a view, and how strongly.

The operations, their ranges and their number of magnitudes are those of torchvision's
`TrivialAugmentWide` (Mueller & Hutter 2021) and `RandAugment` (Cubuk et al. 2019) as applied to
Pillow images. Geometric ones are bilinear, which torchvision's training recipes ask for, and fill
what they uncover with black, its default. They come after the resize and the mirror, on uint8
pixels, before normalisation.

timm's RandAugment is another: its "increasing" set has inversion and the addition to dark pixels
(solarize-add) too and no identity, each operation is applied with probability 1/2, what is
uncovered is of the mean colour, and its magnitudes run from 0 to 10, so that its m7 with a
deviation of 0.5 is magnitude 21 with a deviation of 1.5 here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.order import draws_of


class Operation(IntEnum):
    """What is done to a view, with the unit of its strength. Numbers are in torchvision's order,
    which plans use."""

    IDENTITY = 0
    SHEAR_X = 1  # pixels to the side for each pixel down
    SHEAR_Y = 2
    TRANSLATE_X = 3  # whole pixels
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees
    BRIGHTNESS = 6  # 0: as it is, -1: black, 1: twice as bright
    COLOR = 7  # -1: grey
    CONTRAST = 8  # -1: the mean of its greys everywhere
    SHARPNESS = 9  # -1: smoothed
    POSTERIZE = 10  # bits that are left
    SOLARIZE = 11  # least level that is inverted
    AUTOCONTRAST = 12  # no strength: the range of each colour becomes 0..255
    EQUALIZE = 13  # no strength: levels of each colour become equally frequent


GEOMETRIC = tuple(Operation(number) for number in range(6))
BLENDED = Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS
"""Those that mix the view with a changed one: view * (1 + strength) - changed * strength."""
BINS = 31
"""Magnitudes are 0 .. BINS - 1."""

_TOP = BINS - 1
_WIDE = {  # the strength at the greatest magnitude, which the sign may turn
    Operation.SHEAR_X: 0.99, Operation.SHEAR_Y: 0.99, Operation.TRANSLATE_X: 32.0,
    Operation.TRANSLATE_Y: 32.0, Operation.ROTATE: 135.0, Operation.BRIGHTNESS: 0.99,
    Operation.COLOR: 0.99, Operation.CONTRAST: 0.99, Operation.SHARPNESS: 0.99,
}  # fmt: skip
_RAND = {
    Operation.SHEAR_X: 0.3, Operation.SHEAR_Y: 0.3, Operation.ROTATE: 30.0,
    Operation.BRIGHTNESS: 0.9, Operation.COLOR: 0.9, Operation.CONTRAST: 0.9,
    Operation.SHARPNESS: 0.9,
}  # fmt: skip
_RAND_TRANSLATE = 150 / 331  # of the view's side
_LOST_BITS = {"trivial": 6, "rand": 4}  # by posterize at the greatest magnitude


@dataclass(frozen=True)
class Augmentation:
    """A random choice of operations, each with a random sign where it has one.

    trivial: one operation of any magnitude. rand: `count` operations of `magnitude`, or of one
    drawn for each from N(magnitude, std) and clipped to 0 .. 30.
    """

    kind: Literal["trivial", "rand"] = "trivial"
    count: int = 1
    magnitude: int = 9
    std: float = 0.0

    @property
    def words_per_position(self) -> int:
        """Words: operation, sign and two for the magnitude, for each operation."""
        return 4 * self.count

    def plan(
        self, words: NDArray[np.uint64], shape: tuple[int, int]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return operations and their strengths, (B, count) int32 and float64, for views of `shape`
        (height, width); `words` are (B, words_per_position)."""
        draws = draws_of(words)
        assert len(draws) == self.words_per_position, f"{len(draws)} words a position"
        operations = np.empty((len(words), self.count), np.int32)
        strengths = np.empty((len(words), self.count))
        for number in range(self.count):
            kind, sign, *magnitude = draws[4 * number : 4 * number + 4]
            chosen = np.floor(kind * len(Operation)).astype(np.int32)
            signs, magnitudes = np.where(sign < 0.5, -1.0, 1.0), self._magnitudes(*magnitude)
            operations[:, number] = chosen
            strengths[:, number] = self.strengths(chosen, magnitudes, signs, shape)
        return operations, strengths

    def strengths(
        self, operations: NDArray[np.int32], magnitudes: NDArray[np.float64],
        signs: NDArray[np.float64], shape: tuple[int, int],
    ) -> NDArray[np.float64]:  # fmt: skip
        """Return the strengths (B,) of `operations` at `magnitudes` (0 .. BINS - 1) with `signs`, 1
        or -1, for views of `shape` (height, width)."""
        tops = np.zeros(len(Operation))
        for operation, top in (_WIDE if self.kind == "trivial" else _RAND).items():
            tops[operation] = top
        if self.kind == "rand":
            tops[Operation.TRANSLATE_Y], tops[Operation.TRANSLATE_X] = (
                _RAND_TRANSLATE * side for side in shape
            )
        found = signs * tops[operations] * magnitudes / _TOP
        moved = np.isin(operations, (Operation.TRANSLATE_X, Operation.TRANSLATE_Y))
        found[moved] = np.trunc(found[moved])
        bits = 8 - np.rint(magnitudes * _LOST_BITS[self.kind] / _TOP)
        found = np.where(operations == Operation.POSTERIZE, bits, found)
        return np.where(operations == Operation.SOLARIZE, 255 - 255 * magnitudes / _TOP, found)

    def _magnitudes(
        self, first: NDArray[np.float64], second: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return magnitudes (B,) from two uniform numbers (B,) each."""
        if self.kind == "trivial":
            return np.floor(first * BINS)
        # Box-Muller; 1 - draw is in (0, 1], where the logarithm is finite.
        normal = np.sqrt(-2.0 * np.log(1.0 - first)) * np.cos(2.0 * np.pi * second)
        return np.clip(self.magnitude + self.std * normal, 0.0, float(_TOP))


def parameters_of(
    operations: NDArray[np.int32], strengths: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return what executes operations on views of `shape` (height, width): (..., 6) float64 for
    operations and strengths (...).

    A geometric one has the matrix (xx, xy, x, yx, yy, y) from places in its outcome to places in
    the view, a corner of which is (0, 0). A blended one has its share of the view, 1 + strength;
    posterize the mask of bits that are left; solarize the least level that is inverted; each in
    place 0.
    """
    flat, by = operations.ravel(), strengths.ravel()
    found = np.zeros((len(flat), 6))
    for row, operation, strength in zip(found, flat.tolist(), by.tolist(), strict=True):
        if operation in GEOMETRIC:
            row[:] = _matrix(operation, strength, shape)
        elif operation in BLENDED:
            row[0] = 1.0 + strength
        elif operation == Operation.POSTERIZE:
            row[0] = 256 - 2 ** (8 - int(strength))
        elif operation == Operation.SOLARIZE:
            row[0] = strength
    return found.reshape(*operations.shape, 6)


def _matrix(operation: int, strength: float, shape: tuple[int, int]) -> tuple[float, ...]:
    """The matrix of a geometric operation: a shear about the top left corner, a rotation about the
    centre, counter-clockwise."""
    if operation == Operation.SHEAR_X:
        return 1, strength, 0, 0, 1, 0
    if operation == Operation.SHEAR_Y:
        return 1, 0, 0, strength, 1, 0
    if operation == Operation.TRANSLATE_X:
        return 1, 0, -strength, 0, 1, 0
    if operation == Operation.TRANSLATE_Y:
        return 1, 0, 0, 0, 1, -strength
    if operation == Operation.ROTATE:
        # Rounded as Pillow does, so that a right angle is one.
        angle = -math.radians(strength % 360.0)
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        y, x = shape[0] / 2, shape[1] / 2
        return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y
    return 1, 0, 0, 0, 1, 0
