"""`prepare mini`: small drawn images, for the comparison of plain and residual networks."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.prepare.drawn.image_set import draw_once, say_drawn
from pipeline.prepare.drawn.shapes import CLASSES, outline
from pipeline.prepare.options import MiniOptions

_SIDE = 32  # pixels, as in CIFAR-10
_SCALE = 3  # drawn this much larger, then reduced: Pillow's polygons are not antialiased
_FILES = 5  # training files, as in CIFAR-10
_FOLDER = "cifar-10-batches-bin"
_TRAIN, _TEST = 0, 1  # part of the key of an image's random numbers
_OWN_HUE_SHARE = 0.6
_GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same images


def draw_mini(
    out: Path, seed: int = 0, train_images: int = 10_000, test_images: int = 2_000
) -> bool:
    """Draws `out/cifar-10-batches-bin/`: five training files, a test file and the class names.

    Returns False when `out` already held exactly this set. ValueError if a number is out of range,
    or `out` holds another set or anything else.
    """

    def draw(folder: Path) -> None:
        batches = folder / _FOLDER
        batches.mkdir()
        shares = np.array_split(np.arange(train_images), _FILES)
        for number, share in enumerate(shares, 1):
            _write(batches / f"data_batch_{number}.bin", seed, _TRAIN, share)
        _write(batches / "test_batch.bin", seed, _TEST, np.arange(test_images))
        names = "".join(f"{name}\n" for name in CLASSES)
        (batches / "batches.meta.txt").write_text(names, encoding="utf-8")

    counts = {"train": train_images, "test": test_images}
    return draw_once(out, "mini", _GENERATOR_VERSION, seed, counts, draw)


def _write(path: Path, seed: int, part: int, indices: NDArray[np.int64]) -> None:
    """Rows of one label byte and 3 x 32 x 32 bytes, colour by colour."""
    with open(path, "wb") as file:
        for index in indices:
            label, pixels = draw_small(seed, part, int(index))
            file.write(bytes([label]) + pixels.transpose(2, 0, 1).tobytes())


def draw_small(seed: int, part: int, index: int) -> tuple[int, NDArray[np.uint8]]:
    """Image `index` of a part (0: training, 1: test): its label, and (32, 32, 3) uint8 RGB.

    A pure function of its arguments; classes take turns.
    """
    rng = np.random.default_rng([seed, part, index])
    label = index % len(CLASSES)
    canvas = _background(rng)
    _strew(rng, canvas, int(rng.integers(1, 5)))
    canvas.paste(_colour_of(rng, label), mask=_mask(rng, CLASSES[label]))
    _strew(rng, canvas, int(rng.integers(0, 3)))
    small = canvas.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32) + rng.normal(0, 6, (_SIDE, _SIDE, 3))
    return label, np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> Image.Image:
    """Soft colours."""
    coarse = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
    side = _SIDE * _SCALE
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def _strew(rng: np.random.Generator, canvas: Image.Image, count: int) -> None:
    """Strokes and discs, which say nothing about the class."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(count):
        x, y, u, v = (float(one) for one in rng.uniform(0, canvas.width, 4))
        red, green, blue = (int(one) for one in rng.integers(0, 256, 3))
        if rng.uniform() < 0.5:
            draw.line((x, y, u, v), (red, green, blue), width=int(rng.integers(2, 6)))
        else:
            radius = float(rng.uniform(2, 9))
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, (red, green, blue))


def _mask(rng: np.random.Generator, class_name: str) -> Image.Image:
    """The outline at a random place, size and tilt."""
    polygons = outline(rng, class_name)
    low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
    size, angle = rng.uniform(6.0, 10.0), rng.uniform(-0.5, 0.5)  # half the longer side; radians
    cos, sin = math.cos(angle), math.sin(angle)
    centre = _SIDE / 2 + rng.uniform(-1, 1, 2) * (_SIDE / 2 - 0.5 - size)
    mask = Image.new("L", (_SIDE * _SCALE, _SIDE * _SCALE))
    draw = ImageDraw.Draw(mask)
    for points, ink in zip(polygons, (255, 0), strict=False):
        unit = (2 * points - low - high) / (high - low).max()
        placed = _SCALE * (centre + size * (unit @ np.array([(cos, sin), (-sin, cos)])))
        draw.polygon([(float(x), float(y)) for x, y in placed], fill=ink)
    return mask


def _colour_of(rng: np.random.Generator, label: int) -> tuple[int, int, int]:
    """A colour of the class's own hue, or, as often as not, of any."""
    own = rng.uniform() < _OWN_HUE_SHARE
    hue = (label / len(CLASSES) + rng.normal(0, 0.04)) % 1 if own else rng.uniform()
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1), rng.uniform(0.4, 1))
    red, green, blue = (round(255 * one) for one in rgb)
    return red, green, blue


def run(options: MiniOptions) -> None:
    """Draws the set unless it is there; ValueError where `out` holds anything else."""
    drawn = draw_mini(options.out, options.seed, options.train, options.test)
    say_drawn(options.out, {"train": options.train, "test": options.test}, drawn)
