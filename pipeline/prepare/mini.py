"""`prepare mini`: small drawn images, for the comparison of plain and residual networks."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.prepare.drawn import CLASSES, draw_once, filled, outline
from pipeline.prepare.options import MiniOptions
from pipeline.system.console import say

_SIDE = 32  # pixels, as in CIFAR-10
_SCALE = 3  # drawn this much larger, then reduced: Pillow's polygons are not antialiased
_FILES = 5  # training files, as in CIFAR-10
_FOLDER = "cifar-10-batches-bin"
_TRAIN, _TEST = 0, 1  # part of the key of an image's random numbers
_OWN_HUE_SHARE = 0.6
_GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same images


def run(options: MiniOptions) -> None:
    """Draws the set unless it is there; ValueError where `out` holds anything else."""
    state = "drawn in" if draw_mini(options) else "are in"
    say(f"{options.train} train and {options.test} test images {state} {options.out}")


def draw_mini(options: MiniOptions) -> bool:
    """Draws `out/cifar-10-batches-bin/`: five training files, a test file and the class names.

    Returns False when `out` already held exactly this set. ValueError as `draw_once`.
    """

    def draw(folder: Path) -> None:
        batches = folder / _FOLDER
        batches.mkdir()
        shares = np.array_split(np.arange(options.train), _FILES)
        for number, share in enumerate(shares, 1):
            _write(batches / f"data_batch_{number}.bin", options.seed, _TRAIN, share)
        _write(batches / "test_batch.bin", options.seed, _TEST, np.arange(options.test))
        names = "".join(f"{name}\n" for name in CLASSES)
        (batches / "batches.meta.txt").write_text(names, encoding="utf-8")

    counts = (("train", options.train), ("test", options.test))
    return draw_once(options.out, "mini", _GENERATOR_VERSION, options.seed, counts, draw)


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
    units = [(2 * points - low - high) / (high - low).max() for points in polygons]
    rotation = np.array([(cos, sin), (-sin, cos)])
    placed = [_SCALE * (centre + size * (unit @ rotation)) for unit in units]
    return filled(_SIDE * _SCALE, _SIDE * _SCALE, placed)


def _colour_of(rng: np.random.Generator, label: int) -> tuple[int, int, int]:
    """A colour of the class's own hue, or, as often as not, of any."""
    own = rng.uniform() < _OWN_HUE_SHARE
    hue = (label / len(CLASSES) + rng.normal(0, 0.04)) % 1 if own else rng.uniform()
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1), rng.uniform(0.4, 1))
    red, green, blue = (round(255 * one) for one in rgb)
    return red, green, blue
