"""Pictures for people: grids of images, mistakes with their names, classes as bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.data.classes import class_words
from pipeline.data.crops import Plan
from pipeline.data.dali import Batch, DecodeSettings
from pipeline.data.normalisation import Normalisation
from pipeline.data.stream import ImageStream
from pipeline.system.words import printable
from pipeline.train.validation import ErrorAnalysis

_GRID_IMAGES = 16

# TensorBoard shows a picture 350 pixels wide and scales others to that, so words are drawn for it.
_COLUMNS, _WIDTH, _GAP = 3, 114, 4
_LINE = 14
_LETTERS = 18
_BAR_ROW = 18
_NAME_WIDTH, _BAR_WIDTH, _COUNT_WIDTH = 112, 110, 128
_GREEN, _RED = (0, 158, 115), (213, 94, 0)  # of Okabe and Ito's
_GREY, _PALE = (110, 110, 110), (235, 235, 235)
_SHOWN_CLASSES = 10


class Pictures:
    """Draws the images of batches of `stream`, made as `decode` says.

    `classes` are named by the words in the data set's folder `root` where it has them.
    """

    def __init__(
        self, decode: DecodeSettings, stream: ImageStream, classes: Sequence[str], root: Path
    ) -> None:
        self._normal, self._decoder, self._stream = decode.normalisation, decode.decoder, stream
        self._classes, self._root = classes, root

    def of_batch(self, batch: Batch) -> np.ndarray:
        """A grid of a few training images as the network sees them, (h, w, 3) uint8."""
        images, normal = batch.images[:_GRID_IMAGES], self._normal
        subtracted = normal.subtracted
        if normal.image is not None:
            plan = self._stream.select(batch.positions[: len(images)]).plan
            beyond = normal.mean if self._decoder == "none" else None
            subtracted = mean_in_views(plan, normal.image, beyond)
        return grid(_pixels(images, normal, subtracted))

    def of_validation(self, analysis: ErrorAnalysis) -> Iterator[tuple[str, np.ndarray]]:
        """Pictures of a validation's mistakes and of the accuracy of each class, by their tags."""
        words = class_words(self._root)
        names = [printable(words.get(name, name)) for name in self._classes]
        images, answers = analysis.mistakes()
        captions = [caption(names[a], names[guess], share) for a, guess, share in answers]
        # These views are neither shifted nor mirrored.
        normal = self._normal.for_shape((images.shape[2], images.shape[3]))
        pixels = _pixels(images, normal, normal.subtracted)
        if captions:
            yield "val/mistakes", captioned(pixels, captions)
        yield "val/classes", class_bars(names, analysis.hits.tolist(), analysis.images.tolist())


def grid(images: np.ndarray) -> np.ndarray:
    """The largest square grid that the images (B, H, W, 3) can fill, as one image."""
    side = int(len(images) ** 0.5)
    rows = [np.concatenate(list(images[r * side : (r + 1) * side]), 1) for r in range(side)]
    return np.concatenate(rows, 0)


def captioned(images: np.ndarray, captions: Sequence[tuple[str, str]]) -> np.ndarray:
    """A picture (h, w, 3) uint8 of images (B, H, W, 3) uint8, three in a row, each over two lines
    of words.

    Each is scaled to 114 pixels in width, small ones without smoothing. The first line is green,
    the second red.
    """
    height = round(_WIDTH * images.shape[1] / images.shape[2])
    cell = height + 2 * _LINE + 6
    size = (_COLUMNS * (_WIDTH + _GAP) - _GAP, -(-len(images) // _COLUMNS) * cell)
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    enlarged = images.shape[2] < _WIDTH
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
    for number, (pixels, lines) in enumerate(zip(images, captions, strict=True)):
        x, y = number % _COLUMNS * (_WIDTH + _GAP), number // _COLUMNS * cell
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
    """The accuracy of each class, worst first, as bars; (h, w, 3) uint8.

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
        for filled, colour in ((1.0, _PALE), (share, _GREEN)):
            if filled > 0:
                end = _NAME_WIDTH + round(filled * _BAR_WIDTH)
                draw.rectangle((_NAME_WIDTH, y + 2, end, y + _BAR_ROW - 4), fill=colour)
        count = f"{share:.1%}  {hits[label]} of {images[label]}"
        draw.text((_NAME_WIDTH + _BAR_WIDTH + 8, y + 1), count, "black", font)
    return np.asarray(page)


def mean_in_views(plan: Plan, image: np.ndarray, beyond: np.ndarray | None) -> np.ndarray:
    """The mean `image` (H, W, 3) as it was subtracted from each view of `plan`: (B, h, w, 3).

    It comes before the mirror. Where it comes before the crop too (images that are pixels already)
    views have, outside their image, `beyond` (3,); None: it is subtracted from views of its own
    shape.
    """
    height, width = plan.shape
    views = np.empty((len(plan.flips), height, width, 3), np.float32)
    for view, (y, x), flip in zip(views, plan.boxes[:, :2].astype(int), plan.flips, strict=True):
        if beyond is None:
            view[:] = image
        else:
            view[:] = beyond
            part = image[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
            top, left = max(0, -y), max(0, -x)
            view[top : top + part.shape[0], left : left + part.shape[1]] = part
        if flip:
            view[:] = view[:, ::-1].copy()
    return views


def _pixels(images: Tensor, normal: Normalisation, subtracted: np.ndarray) -> np.ndarray:
    """Images (B, 3, H, W) as the network gets them, as (B, H, W, 3) uint8. A host sync."""
    shown = images.permute(0, 2, 3, 1).float().cpu().numpy()
    pixels = np.clip(shown * normal.std + subtracted, 0, 255).round()
    return cast(np.ndarray, pixels.astype(np.uint8))
