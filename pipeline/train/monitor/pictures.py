"""Pictures for people: grids of images, mistakes with their names, classes as bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# TensorBoard shows a picture 350 pixels wide and scales others to that, so words are drawn for it.
_COLUMNS, _WIDTH, _GAP = 3, 114, 4
_LINE = 14
_LETTERS = 18
_BAR_ROW = 18
_NAME_WIDTH, _BAR_WIDTH, _COUNT_WIDTH = 112, 110, 128
_GREEN, _RED, _GREY = (0, 158, 115), (213, 94, 0), (110, 110, 110)  # of Okabe and Ito's
_SHOWN_CLASSES = 10


def grid(images: np.ndarray) -> np.ndarray:
    """The largest square of the images (B, H, W, 3) that there are enough for, as one."""
    side = int(len(images) ** 0.5)
    rows = [np.concatenate(list(images[r * side : (r + 1) * side]), 1) for r in range(side)]
    return np.concatenate(rows, 0)


def captioned(images: np.ndarray, captions: Sequence[tuple[str, str]]) -> np.ndarray:
    """Images (B, H, W, 3) uint8, three in a row, each over its two lines of words; (h, w, 3) uint8.

    Each is scaled to 114 pixels in width, small ones without smoothing. The first line is green,
    the second red.
    """
    columns = _COLUMNS
    height = round(_WIDTH * images.shape[1] / images.shape[2])
    cell = height + 2 * _LINE + 6
    page = Image.new(
        "RGB", (columns * (_WIDTH + _GAP) - _GAP, -(-len(images) // columns) * cell), "white"
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    enlarged = images.shape[2] < _WIDTH
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
    for number, (pixels, lines) in enumerate(zip(images, captions, strict=True)):
        x, y = number % columns * (_WIDTH + _GAP), number // columns * cell
        page.paste(Image.fromarray(pixels).resize((_WIDTH, height), how), (x, y))
        for row, (line, colour) in enumerate(zip(lines, (_GREEN, _RED), strict=True)):
            draw.text((x + 2, y + height + 1 + row * _LINE), line, colour, font)
    return np.asarray(page)


def caption(true: str, predicted: str, probability: float) -> tuple[str, str]:
    """The two lines under a mistake, names cut to what fits."""
    percent = f" {probability:.0%}"
    return _cut(f"is {true}", _LETTERS), _cut(f"not {predicted}", _LETTERS - len(percent)) + percent


def _cut(words: str, letters: int) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"


def class_bars(names: Sequence[str], hits: Sequence[int], images: Sequence[int]) -> np.ndarray:
    """The share of each class's images that are right, worst first, as bars; (h, w, 3) uint8.

    Of more than 20 classes with images, the ten worst and the ten best. Ties go by class number.
    """
    ranked = sorted((hits[c] / images[c], c) for c in range(len(names)) if images[c])
    rows: list[tuple[float, int] | None] = list(ranked)
    if len(ranked) > 2 * _SHOWN_CLASSES:
        rows = [*ranked[:_SHOWN_CLASSES], None, *ranked[-_SHOWN_CLASSES:]]
    width = _NAME_WIDTH + _BAR_WIDTH + _COUNT_WIDTH
    page = Image.new("RGB", (width, (len(rows) or 1) * _BAR_ROW + 8), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, row in enumerate(rows):
        y = number * _BAR_ROW + 4
        if row is None:
            draw.text((2, y), f"{len(ranked) - 2 * _SHOWN_CLASSES} classes between", _GREY, font)
            continue
        share, label = row
        draw.text((2, y + 1), _cut(names[label], 17), "black", font)
        ends = (_NAME_WIDTH, y + 2, _NAME_WIDTH + _BAR_WIDTH, y + _BAR_ROW - 4)
        draw.rectangle(ends, fill=(235, 235, 235))
        filled = (_NAME_WIDTH, y + 2, _NAME_WIDTH + round(share * _BAR_WIDTH), y + _BAR_ROW - 4)
        if share > 0:
            draw.rectangle(filled, fill=_GREEN)
        count = f"{share:.1%}  {hits[label]} of {images[label]}"
        draw.text((_NAME_WIDTH + _BAR_WIDTH + 8, y + 1), count, "black", font)
    return np.asarray(page)
