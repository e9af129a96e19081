# mypy: ignore-errors
# Numba compiles most of this file: it looks like Python but has types of its own.
"""The compiled part of `augmenting`: Pillow's operations on an image, the same levels to the bit.

Where Pillow computes in double so does this, where it computes in float32 so does this, and levels
are cut where it cuts them: in an affine transform and a blend. There is no contraction, so that
pixels are the same on every CPU.

One file, as numba's cache looks at the date of the file that holds the cached function alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit

from pipeline.data.augmentations import GEOMETRIC, Operation
from pipeline.data.resampling_kernel import OPTIONS, RUN, SET_UP, compiled

_IDENTITY, _LAST_MOVE = int(Operation.IDENTITY), int(max(GEOMETRIC))
_BRIGHTNESS, _COLOR = int(Operation.BRIGHTNESS), int(Operation.COLOR)
_CONTRAST, _SHARPNESS = int(Operation.CONTRAST), int(Operation.SHARPNESS)
_POSTERIZE, _SOLARIZE = int(Operation.POSTERIZE), int(Operation.SOLARIZE)
_AUTOCONTRAST = int(Operation.AUTOCONTRAST)


def run_function() -> Any:
    """What changes one image with inputs as in `augmenting`; `address` is what DALI calls."""
    return compiled(_run, RUN)


def set_up_function() -> Any:
    """What tells DALI the shapes of a batch: those of its first input."""
    return compiled(_set_up, SET_UP)


def _set_up(outs, _dims, _outputs, ins, _in_dims, _inputs, samples):
    for sample in range(samples):
        for axis in range(3):
            outs[sample][axis] = ins[sample][axis]


def _run(outs, shapes, _dims, _outputs, ins, in_shapes, _in_dims, _inputs):
    shape = (shapes[0][0], shapes[0][1], 3)
    count = in_shapes[1][0]
    operations = carray(ins[1], count, dtype=np.int32)
    parameters = carray(ins[2], (count, 6), dtype=np.float64)
    image, out = carray(ins[0], shape, dtype=np.uint8), carray(outs[0], shape, dtype=np.uint8)
    for number in range(count):
        changed = out if number == count - 1 else np.empty(shape, np.uint8)
        _change(image, operations[number], parameters[number], changed)
        image = changed


@njit(**OPTIONS)
def _change(image, operation, by, out):
    """`image` (H, W, 3) uint8 to `out` by one operation with its parameters (6,)."""
    if operation == _IDENTITY:
        out[:] = image
    elif operation <= _LAST_MOVE:
        _move(image, by, out)
    elif operation == _SHARPNESS:
        _sharpen(image, np.float32(by[0]), out)
    elif operation <= _CONTRAST:
        _blend_with_grey(image, operation, np.float32(by[0]), out)
    else:
        table = np.empty(256, np.uint8)
        for channel in range(3):
            _fill(table, operation, by[0], image, channel)
            for y in range(image.shape[0]):
                for x in range(image.shape[1]):
                    out[y, x, channel] = table[image[y, x, channel]]


@njit(**OPTIONS)
def _move(image, by, out):
    """Bilinear, black beyond the image; neighbours beyond its edge are the edge's."""
    height, width = image.shape[0], image.shape[1]
    for y in range(height):
        for x in range(width):
            at_x = by[0] * (x + 0.5) + by[1] * (y + 0.5) + by[2]
            at_y = by[3] * (x + 0.5) + by[4] * (y + 0.5) + by[5]
            if at_x < 0 or at_x >= width or at_y < 0 or at_y >= height:
                out[y, x, 0], out[y, x, 1], out[y, x, 2] = 0, 0, 0
                continue
            left, top = math.floor(at_x - 0.5), math.floor(at_y - 0.5)
            across, down = at_x - 0.5 - left, at_y - 0.5 - top
            right, below = min(left + 1, width - 1), min(top + 1, height - 1)
            left, top = max(left, 0), max(top, 0)
            for channel in range(3):
                upper = np.float64(image[top, left, channel])
                upper += (np.float64(image[top, right, channel]) - upper) * across
                lower = np.float64(image[below, left, channel])
                lower += (np.float64(image[below, right, channel]) - lower) * across
                out[y, x, channel] = np.uint8(upper + (lower - upper) * down)


@njit(**OPTIONS)
def _blended(level, other, share):
    """A mix in float32: what is beyond 0..255 is cut off, the rest cut to a whole number."""
    mixed = np.float32(other) + share * np.float32(np.int32(level) - np.int32(other))
    return np.uint8(min(max(mixed, np.float32(0)), np.float32(255)))


@njit(**OPTIONS)
def _grey(image, y, x):
    red, green = np.int32(image[y, x, 0]), np.int32(image[y, x, 1])
    return (19595 * red + 38470 * green + 7471 * np.int32(image[y, x, 2]) + 0x8000) >> 16


@njit(**OPTIONS)
def _blend_with_grey(image, operation, share, out):
    """Brightness: with black; colour: with its greys; contrast: with the mean of its greys."""
    height, width = image.shape[0], image.shape[1]
    other = np.int32(0)
    if operation == _CONTRAST:
        total = np.int64(0)
        for y in range(height):
            for x in range(width):
                total += _grey(image, y, x)
        other = np.int32(np.float64(total) / (height * width) + 0.5)
    for y in range(height):
        for x in range(width):
            if operation == _COLOR:
                other = np.int32(_grey(image, y, x))
            for channel in range(3):
                out[y, x, channel] = _blended(image[y, x, channel], other, share)


@njit(**OPTIONS)
def _sharpen(image, share, out):
    """With a smoothed one, which has the outermost pixels of the image."""
    height, width = image.shape[0], image.shape[1]
    for y in range(height):
        for x in range(width):
            inner = 0 < y < height - 1 and 0 < x < width - 1
            for channel in range(3):
                level = np.int32(image[y, x, channel])
                other = level
                if inner:
                    total = 4 * level
                    for row in range(y - 1, y + 2):
                        for column in range(x - 1, x + 2):
                            total += np.int32(image[row, column, channel])
                    other = (2 * total + 13) // 26  # a thirteenth, rounded
                out[y, x, channel] = _blended(level, other, share)


@njit(**OPTIONS)
def _fill(table, operation, by, image, channel):
    """What becomes of each level of a channel, (256,) uint8."""
    for level in range(256):
        if operation == _POSTERIZE:
            table[level] = level & np.int64(by)
        elif operation == _SOLARIZE and level >= by:
            table[level] = 255 - level
        else:
            table[level] = level
    if operation >= _AUTOCONTRAST:
        counts = np.zeros(256, np.int64)
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                counts[image[y, x, channel]] += 1
        least, most = 0, 255
        while counts[least] == 0:
            least += 1
        while counts[most] == 0:
            most -= 1
        if operation == _AUTOCONTRAST:
            _stretch(table, least, most)
        else:
            _equalise(table, counts, most)


@njit(**OPTIONS)
def _stretch(table, least, most):
    """The range from `least` to `most` becomes 0..255."""
    if most > least:
        scale = 255.0 / (most - least)
        offset = -least * scale
        for level in range(256):
            table[level] = np.uint8(min(max(level * scale + offset, 0.0), 255.0))


@njit(**OPTIONS)
def _equalise(table, counts, most):
    """A level becomes the share of the pixels below it; the greatest level's do not count."""
    step = (counts.sum() - counts[most]) // 255
    if step > 0:
        below = step // 2
        for level in range(256):
            table[level] = min(below // step, 255)
            below += counts[level]
