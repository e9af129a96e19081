"""A drawn task of CIFAR-10's size: which two of five shapes stand on the clutter?

The ten classes are the pairs of five shapes, so that no part of an image gives the class away: a
network has to find two objects of any place, size, turn and colour and to put them together. The
set is written in CIFAR-10's binary format, for `configs/mini/`.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.data.demo_drawing import outline
from pipeline.data.drawn_set import draw_once

SHAPES = ("arrow", "cross", "heart", "star", "triangle")
PAIRS = tuple(itertools.combinations(SHAPES, 2))  # by label
_SIDE = 32  # pixels, as in CIFAR-10
_SCALE = 3  # drawn this much larger, then reduced: Pillow's polygons are not antialiased
_FILES = 5  # training files, as in CIFAR-10
_FOLDER = "cifar-10-batches-bin"
_TRAIN, _TEST = 0, 1  # part of the key of an image's random numbers
_GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same images


def draw_pairs(
    out: Path, seed: int = 0, train_images: int = 10_000, test_images: int = 2_000
) -> bool:
    """Draws `out/cifar-10-batches-bin/`: five training files, a test file and the class names.

    Returns False when `out` already held exactly this set. ValueError if a number is out of range,
    or `out` holds another set or anything else.
    """
    if seed < 0:
        raise ValueError(f"--seed={seed} must be 0 or more")
    for option, count in (("train", train_images), ("test", test_images)):
        if count < len(PAIRS):
            raise ValueError(
                f"--{option}={count} must be at least {len(PAIRS)}: one image for each class"
            )
    parameters = {
        "generator_version": _GENERATOR_VERSION,
        "seed": seed,
        "train_images": train_images,
        "test_images": test_images,
    }

    def draw(folder: Path) -> None:
        batches = folder / _FOLDER
        batches.mkdir()
        shares = np.array_split(np.arange(train_images), _FILES)
        for number, share in enumerate(shares, 1):
            _write(batches / f"data_batch_{number}.bin", seed, _TRAIN, share)
        _write(batches / "test_batch.bin", seed, _TEST, np.arange(test_images))
        names = "".join("-".join(pair) + "\n" for pair in PAIRS)
        (batches / "batches.meta.txt").write_text(names, encoding="utf-8")

    return draw_once(out, "pairs", parameters, draw)


def _write(path: Path, seed: int, part: int, indices: NDArray[np.int64]) -> None:
    """Rows of one label byte and 3 x 32 x 32 bytes, colour by colour."""
    with open(path, "wb") as file:
        for index in indices:
            label, pixels = draw_pair(seed, part, int(index))
            file.write(bytes([label]) + pixels.transpose(2, 0, 1).tobytes())


def draw_pair(seed: int, part: int, index: int) -> tuple[int, NDArray[np.uint8]]:
    """Image `index` of a part (0: training, 1: test): its label, and (32, 32, 3) uint8 RGB.

    A pure function of its arguments; classes take turns.
    """
    rng = np.random.default_rng([seed, part, index])
    label = index % len(PAIRS)
    canvas = _clutter(rng)
    draw = ImageDraw.Draw(canvas)
    # On opposite sides of the middle, so that neither hides the other.
    angle = rng.uniform(0, 2 * math.pi)
    apart = np.array([math.cos(angle), math.sin(angle)])
    for name, side in zip(PAIRS[label], rng.permutation([-1.0, 1.0]), strict=True):
        centre = _SIDE / 2 + side * rng.uniform(7.0, 9.5) * apart + rng.uniform(-1.5, 1.5, 2)
        _draw_shape(rng, draw, name, centre)
    small = canvas.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32) + rng.normal(0, 6, (_SIDE, _SIDE, 3))
    return label, np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _clutter(rng: np.random.Generator) -> Image.Image:
    """Soft colours under strokes and discs that no class has."""
    side = _SIDE * _SCALE
    coarse = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
    canvas = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(4, 9)):
        x, y, u, v = (float(one) for one in rng.uniform(0, side, 4))
        colour = _colour(rng)
        if rng.uniform() < 0.5:
            draw.line((x, y, u, v), colour, width=int(rng.integers(2, 6)))
        else:
            radius = float(rng.uniform(2, 9))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    return canvas


def _draw_shape(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, name: str, centre: NDArray[np.float64]
) -> None:
    (points,) = outline(rng, name)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (2 * points - low - high) / (high - low).max()  # reaches to 1 around the origin
    angle, size = rng.uniform(0, 2 * math.pi), rng.uniform(5.0, 7.5)
    cos, sin = math.cos(angle), math.sin(angle)
    placed = _SCALE * (centre + size * (points @ np.array([(cos, sin), (-sin, cos)])))
    draw.polygon([(float(x), float(y)) for x, y in placed], fill=_colour(rng))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(one) for one in rng.integers(0, 256, 3))
    return red, green, blue
