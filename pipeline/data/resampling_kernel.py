# mypy: ignore-errors
# Numba compiles most of this file: it looks like Python but has types of its own.
"""The compiled part of `dali.resampling`: a triangle filter over a fractional box, in integers.

Rows first: `_ROWS` output rows at a time are weighted sums of source rows. They are then turned, so
that an output column is a weighted sum of lines of `_LINE` values, and both sums are the same loop
over contiguous memory, which LLVM makes vector instructions of. What lies between the two fits a
core's own caches whatever the image's size.

A pixel is 8 bits, between the passes 15 (7 of them below the point, so that it is rounded once), a
weight has 14 bits below the point, a sum is 32 bits: as Pillow's resize, which rounds to 8 bits
between its passes. Weights are float64 sums in a fixed order, without contraction, so that the
pixels are the same on every CPU.

It lies outside of the package that imports DALI, as what sees images without DALI has the same
weights. One file, as numba's cache looks at the date of the file that holds the cached function
alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, cfunc, njit
from numba.types import CPointer, int32, int64, void, voidptr

_ROWS = 16
_LINE = 4 * _ROWS  # of a turned column: red, green, blue and one that nobody reads, row by row
_ONE = 1 << 14  # weight of 1
_FIRST_SHIFT, _SECOND_SHIFT = 7, 14 + 7
OPTIONS = {"boundscheck": False, "error_model": "numpy"}

# What DALI calls, with the addresses of the outputs' data, shapes and numbers of dimensions, their
# number, and the same of the inputs; the set-up has shapes only, of all samples of all inputs.
_DATA = CPointer(voidptr)
_SHAPES = CPointer(CPointer(int64))
RUN = void(_DATA, _SHAPES, voidptr, int32, _DATA, _SHAPES, voidptr, int32)
SET_UP = void(_SHAPES, voidptr, int32, _SHAPES, voidptr, int32, int32)
_CANVAS = 3  # which input has the output's height and width


def run_function(normalised: bool) -> Any:
    """What makes one image of inputs as in `resampling`, float32 if normalised; `address` is what
    DALI calls."""
    return compiled(_run_float32 if normalised else _run_uint8, RUN)


def set_up_function() -> Any:
    """What tells DALI the shapes of a batch."""
    return compiled(_set_up, SET_UP)


@functools.cache  # the code lives as long as what numba gives
def compiled(function: Callable[..., None], signature: Any) -> Any:
    """Takes 4 to 8 s once, then 0.1 s: it is kept beside the function's file, or in the user's
    cache folder.

    Where neither can be written every process compiles it.
    """
    try:
        return cfunc(signature, cache=True, **OPTIONS)(function)
    except (RuntimeError, OSError) as error:  # OSError: a full disk, or another user's files
        if isinstance(error, RuntimeError) and "cannot cache" not in str(error):
            raise
        return cfunc(signature, **OPTIONS)(function)


def _set_up(outs, _dims, _outputs, ins, _in_dims, _inputs, samples):
    for sample in range(samples):
        canvas = ins[_CANVAS * samples + sample]
        outs[sample][0], outs[sample][1], outs[sample][2] = canvas[0], canvas[1], 3


def _run_uint8(outs, shapes, _dims, _outputs, ins, in_shapes, _in_dims, _inputs):
    out = carray(outs[0], shapes[0][0] * shapes[0][1] * 3, dtype=np.uint8)
    _resample(ins, in_shapes[0], None, shapes[0], out)


def _run_float32(outs, shapes, _dims, _outputs, ins, in_shapes, _in_dims, _inputs):
    out = carray(outs[0], shapes[0][0] * shapes[0][1] * 3, dtype=np.float32)
    _resample(ins, in_shapes[0], carray(ins[5], 6, dtype=np.float32), shapes[0], out)


@njit(**OPTIONS)
def _resample(ins, size, normaliser, shape, out):
    """The inputs of an image of `size` (h, w) to `out`, (H * W * 3,) for a `shape` (H, W)."""
    width, height, out_width = size[1], shape[0], shape[1]
    source = carray(ins[0], (size[0], 3 * width), dtype=np.uint8)
    begin, end = carray(ins[1], 2, dtype=np.float32), carray(ins[2], 2, dtype=np.float32)
    mirror = carray(ins[4], 1, dtype=np.int32)[0] != 0
    tops, heights, down = weights(begin[0], end[0], size[0], height, False)
    lefts, widths, across = weights(begin[1], end[1], width, out_width, mirror)
    # A value more: the last pixel is read as four values.
    rows = np.zeros((_ROWS, 3 * width + 1), np.int16)
    columns = np.empty(width * _LINE, np.int16)
    pixels = np.empty(out_width * _LINE, np.uint8)
    sums = np.empty(max(3 * width, _LINE), np.int32)
    for first in range(0, height, _ROWS):
        count = min(_ROWS, height - first)
        for i in range(count):
            y = first + i
            _sum_rows(source, tops[y], down[y, : heights[y]], sums, rows[i, : 3 * width])
        _turn(rows, columns)
        _sum_columns(columns, lefts, widths, across, sums, pixels)
        for i in range(count):
            _write(pixels, out_width, i, normaliser, out, (first + i) * out_width * 3)


@njit(**OPTIONS)
def weights(begin, end, size, count, mirror):
    """What each of `count` outputs is made of: the first of its source pixels (count,), how many
    they are (count,), their weights (count, most), which add up to `_ONE` exactly.

    A triangle as wide as two source pixels or, where it shrinks, two output pixels, about the
    output's centre; beyond the source its edge is repeated. That is DALI's resize.
    """
    scale = (np.float64(end) - np.float64(begin)) / count
    reach = max(1.0, scale)
    most = math.ceil(2 * reach)  # whole numbers in an open interval
    firsts, counts = np.empty(count, np.int64), np.empty(count, np.int64)
    weights = np.zeros((count, most), np.int16)
    triangle = np.empty(most)
    for output in range(count):
        centre = np.float64(begin) + (output + 0.5) * scale - 0.5
        low = math.floor(centre - reach) + 1
        total = 0.0
        for tap in range(most):
            triangle[tap] = max(0.0, 1.0 - abs(low + tap - centre) / reach)
            total += triangle[tap]
        first = min(max(low, 0), size - 1)
        last = min(max(low + most - 1, 0), size - 1)
        place = count - 1 - output if mirror else output
        firsts[place], counts[place] = first, last - first + 1
        # Rounded sums, not weights: so none is lost however many there are.
        before, so_far = 0, 0.0
        for tap in range(most):
            so_far += triangle[tap]
            after = math.floor(so_far / total * _ONE + 0.5)
            source = min(max(low + tap, 0), size - 1)
            weights[place, source - first] += after - before
            before = after
    return firsts, counts, weights


@njit(**OPTIONS)
def _sum_rows(source, first, weights, sums, out):
    """`out` (n,) int16: as many rows (n,) uint8 as there are weights, from `first` on."""
    for i in range(len(out)):
        sums[i] = 1 << (_FIRST_SHIFT - 1)
    for tap in range(len(weights)):
        weight, row = np.int32(weights[tap]), source[first + tap]
        for i in range(len(out)):
            sums[i] += np.int32(weight * np.int32(row[i]))
    for i in range(len(out)):
        out[i] = sums[i] >> _FIRST_SHIFT


@njit(**OPTIONS)
def _turn(rows, columns):
    """Rows (_ROWS, 3 w + 1) to columns (w * _LINE,). A pixel is moved as four values, which is one
    move of 64 bits; the fourth is the next pixel's red."""
    for x in range(rows.shape[1] // 3):
        for row in range(_ROWS):
            place = x * _LINE + 4 * row
            red, green = rows[row, 3 * x], rows[row, 3 * x + 1]
            blue, unused = rows[row, 3 * x + 2], rows[row, 3 * x + 3]
            columns[place], columns[place + 1] = red, green
            columns[place + 2], columns[place + 3] = blue, unused


@njit(**OPTIONS)
def _sum_columns(columns, firsts, counts, weights, sums, pixels):
    """`pixels` (W * _LINE,) uint8: each column the sum of `counts` columns from `firsts` on."""
    for x in range(len(firsts)):
        for i in range(_LINE):
            sums[i] = 1 << (_SECOND_SHIFT - 1)
        for tap in range(counts[x]):
            start = (firsts[x] + tap) * _LINE
            weight, column = np.int32(weights[x, tap]), columns[start : start + _LINE]
            for i in range(_LINE):
                sums[i] += np.int32(weight * np.int32(column[i]))
        out = pixels[x * _LINE : (x + 1) * _LINE]
        for i in range(_LINE):
            out[i] = sums[i] >> _SECOND_SHIFT


@njit(**OPTIONS)
def _write(pixels, width, row, normaliser, out, begin):
    """Row `row` of `pixels` (W * _LINE,) to `out` from `begin` on; `normaliser` is the three means
    and three factors, or None."""
    if normaliser is not None:
        r, g, b = normaliser[0], normaliser[1], normaliser[2]
        by_r, by_g, by_b = normaliser[3], normaliser[4], normaliser[5]
    for x in range(width):
        place = x * _LINE + 4 * row
        red, green, blue = pixels[place], pixels[place + 1], pixels[place + 2]
        if normaliser is None:
            out[begin + 3 * x] = red
            out[begin + 3 * x + 1] = green
            out[begin + 3 * x + 2] = blue
        else:
            out[begin + 3 * x] = (np.float32(red) - r) * by_r
            out[begin + 3 * x + 1] = (np.float32(green) - g) * by_g
            out[begin + 3 * x + 2] = (np.float32(blue) - b) * by_b
