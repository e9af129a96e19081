"""`prepare demo`: ten classes of shapes over photo-like clutter, as JPEG files of photos' sizes.

The class decides a shape's outline and nothing else: place, size, rotation, colour, light and
background are drawn the same way for every class, so none of them gives the class away. Sizes,
contrast and clutter are set so that a ResNet-18 learns the task from about 40,000 images at 64
pixels.
"""

from __future__ import annotations

import colorsys
import functools
import io
import math
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.index.survey import Split
from pipeline.prepare.drawn import CLASSES, draw_once, filled, outline
from pipeline.prepare.options import DemoOptions
from pipeline.system.console import say
from pipeline.system.machine import available_cores, end_with_parent

_GENERATOR_VERSION = 1  # raise it when the same seed no longer gives the same images
# Shares of the rare kinds. In ImageNet they are rarer still; here a few thousand files must hold
# some of each.
_GREY_SHARE, _CMYK_SHARE, _PROGRESSIVE_SHARE = 0.04, 0.03, 0.06
# Width to height, and how often: mostly 4:3 landscape as in ImageNet, some portrait and square, a
# few odd ones.
_ASPECTS = (4 / 3, 3 / 4, 1.0, 3 / 2, 2 / 3, 16 / 9, 2.2)
_ASPECT_SHARES = (0.45, 0.15, 0.14, 0.12, 0.06, 0.05, 0.03)
_SHORTEST_SIDE, _LONGEST_SIDE = 80, 200  # pixels
_SUPERSAMPLING = 4  # Pillow's polygons are not antialiased: filled at this scale, then reduced
_CHUNK = 32  # images that a process draws between two errands
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # JPEG's Y of RGB (ITU-R BT.601)

FloatArray = NDArray[np.float32]


def run(options: DemoOptions) -> None:
    """Draws the set unless it is there; ValueError where `out` holds anything else."""
    state = "drawn in" if draw_demo(options) else "are in"
    say(f"{options.train} train and {options.val} val images {state} {options.out}")


def draw_demo(options: DemoOptions) -> bool:
    """Draws `out/train/<class>/<name>.JPEG` and `out/val/<class>/<name>.JPEG`, atomically.

    The images are spread evenly over the ten classes; every seed gives different ones. Returns
    False when `out` already held exactly this set. Starts a process for each core. ValueError as
    `draw_once`.
    """
    counts: tuple[tuple[Split, int], ...] = (("train", options.train), ("val", options.val))

    images = [(split, index) for split, count in counts for index in range(count)]

    def draw(folder: Path) -> None:
        # Processes, as in threads two cores draw little more than one. Not fork: the caller may run
        # threads.
        workers = min(available_cores(), -(-len(images) // _CHUNK))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, spawn, _begin_worker) as pool:
            draw_file = functools.partial(_draw_file, folder, options.seed)
            for _ in pool.map(draw_file, images, chunksize=_CHUNK):
                pass  # an error is raised here, and what is not begun is left

    return draw_once(options.out, "demo", _GENERATOR_VERSION, options.seed, counts, draw)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too and ends this process
    end_with_parent()  # a pool's worker would wait for ever for one that was killed
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():  # it was killed before
        os._exit(1)


def _draw_file(folder: Path, seed: int, image: tuple[Split, int]) -> None:
    split, index = image
    class_name = CLASSES[index % len(CLASSES)]
    path = folder / split / class_name / f"{class_name}_{index:05d}.JPEG"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(demo_file(seed, split, index))


def demo_image(
    seed: int, split: Split, index: int, classes: Sequence[str] = CLASSES
) -> NDArray[np.uint8]:
    """Pixels of one image before JPEG coding, (H, W, 3) uint8 RGB, both sides 80 to 200 pixels.

    Its class is number `index % len(classes)`.
    """
    rng = _generator(seed, split, index, "pixels")
    height, width = _image_size(rng)
    image = _clutter(rng, height, width)
    mask = _shape_mask(rng, classes[index % len(classes)], height, width)
    image = _paint_shape(rng, image, mask)
    image *= _lighting(rng, height, width)
    sensor_noise = rng.standard_normal(image.shape, dtype=np.float32)
    image += rng.uniform(0.002, 0.012) * sensor_noise
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def demo_file(seed: int, split: Split, index: int, classes: Sequence[str] = CLASSES) -> bytes:
    """The same image as the bytes of its JPEG file."""
    rng = _generator(seed, split, index, "file")
    image = Image.fromarray(demo_image(seed, split, index, classes))
    kind = rng.uniform()
    if kind < _GREY_SHARE:
        image = image.convert("L")
    elif kind < _GREY_SHARE + _CMYK_SHARE:
        image = image.convert("CMYK")
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=int(rng.integers(60, 96)),
        progressive=bool(rng.uniform() < _PROGRESSIVE_SHARE),
    )
    return buffer.getvalue()


def _generator(seed: int, split: Split, index: int, purpose: str) -> np.random.Generator:
    # Pixels and file draw from separate streams: a change of one leaves the other as it was.
    key = [seed, ("train", "val").index(split), index, ("pixels", "file").index(purpose)]
    return np.random.default_rng(key)


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    aspect = rng.choice(_ASPECTS, p=_ASPECT_SHARES) * rng.uniform(0.96, 1.04)
    elongation = max(aspect, 1 / aspect)
    short = rng.uniform(_SHORTEST_SIDE, _LONGEST_SIDE / elongation)
    short_side, long_side = round(short), round(short * elongation)
    return (short_side, long_side) if aspect > 1 else (long_side, short_side)


def _shape_mask(rng: np.random.Generator, class_name: str, height: int, width: int) -> FloatArray:
    """Covered share of each pixel, (H, W) in 0..1: the shape at a random place, size and turn."""
    polygons = outline(rng, class_name)
    squeeze, angle = rng.uniform(0.85, 1.0), rng.uniform(-0.5, 0.5)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([(cos, sin), (-sin, cos)])
    polygons = tuple((points * (squeeze, 1.0)) @ rotation for points in polygons)
    low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
    short = min(height, width)
    size = rng.uniform(0.5, 0.75) * short  # longer side of the bounding box, pixels
    scale = size / (high - low).max()
    # Validation's centre crop (64 of 72) shows the middle 0.89 of the short side: stay within it.
    reach = (0.88 * short - scale * (high - low)) / 2
    centre = np.array([width, height]) / 2 + rng.uniform(-1, 1, size=2) * reach
    canvas = filled(
        width * _SUPERSAMPLING,
        height * _SUPERSAMPLING,
        [(centre + scale * (one - (low + high) / 2)) * _SUPERSAMPLING for one in polygons],
    )
    return np.asarray(canvas.reduce(_SUPERSAMPLING), np.float32) / np.float32(255)


def _paint_shape(rng: np.random.Generator, image: FloatArray, mask: FloatArray) -> FloatArray:
    """Lays a shaded, faintly textured surface of the form of `mask` over `image`, with a shadow."""
    height, width = mask.shape
    behind = (image * mask[..., None]).sum(axis=(0, 1)) / mask.sum()
    candidates = np.array([_colour(rng, (0.15, 0.95), (0.1, 1.0)) for _ in range(16)])
    contrast = np.abs((candidates - behind) @ _LUMINANCE)
    # Contrast in luminance, not in hue alone: the grey files must show the shape too.
    enough = np.flatnonzero(contrast > 0.3)
    colour = candidates[enough[0] if len(enough) else contrast.argmax()]
    shading = 1 + rng.uniform(0.05, 0.2) * _ramp(rng, height, width)
    grain = rng.uniform(0.0, 0.03) * _smooth_noise(rng, height, width, height // 4, width // 4, 1)
    surface = colour * shading[..., None] + grain
    offset = max(1, min(height, width) // 40)
    shadow = np.roll(_blurred(mask, 4 * offset), rng.integers(-offset, 2 * offset, size=2), (0, 1))
    image = image * (1 - rng.uniform(0.0, 0.35) * shadow[..., None])
    cover = mask[..., None]
    painted: FloatArray = image * (1 - cover) + surface.astype(np.float32) * cover
    return painted


def _clutter(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """Muted photo-like background, (H, W, 3) around 0..1: gradient, noise, soft blobs, texture."""
    near, far = (_colour(rng, (0.05, 0.4), (0.25, 0.8)) for _ in range(2))
    blend = (_ramp(rng, height, width)[..., None] + 1) / 2
    image = near * (1 - blend) + far * blend
    for cells in (3, 6, 12):
        strength = rng.uniform(0.03, 0.15) / math.sqrt(cells)
        image = image + strength * _smooth_noise(rng, height, width, cells, cells, 1)
        image = image + 0.25 * strength * _smooth_noise(rng, height, width, cells, cells, 3)
    for _ in range(rng.integers(3, 8)):
        alpha = rng.uniform(0.15, 0.5) * _blob(rng, height, width)[..., None]
        image = image * (1 - alpha) + _colour(rng, (0.05, 0.4), (0.25, 0.8)) * alpha
    rows, columns = rng.integers(8, 60, size=2)  # unequal counts give streaks: grass, bark, cloth
    image = image + rng.uniform(0.0, 0.025) * _smooth_noise(rng, height, width, rows, columns, 1)
    return image.astype(np.float32)


def _lighting(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """Factor per pixel, (H, W, 1): light from one side, darker corners."""
    y, x, _ = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j, 0:1]
    vignette = 1 - rng.uniform(0.0, 0.15) * (x * x + y * y)
    side_light = 1 + rng.uniform(0.0, 0.2) * _ramp(rng, height, width)[..., None]
    light: FloatArray = (vignette * side_light).astype(np.float32)
    return light


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> FloatArray:
    rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, np.float32)


def _ramp(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """Linear from about -1 to 1 in a random direction, (H, W)."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return ((math.cos(angle) * x + math.sin(angle) * y) / math.sqrt(2)).astype(np.float32)


def _blob(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """An ellipse with a softer or sharper edge, (H, W) in 0..1: an object out of focus."""
    radius_a, radius_b = rng.uniform(0.1, 0.6, size=2) * min(height, width)
    angle, sharpness = rng.uniform(0, math.pi), rng.uniform(1.5, 10.0)
    y, x = np.ogrid[0:height, 0:width]
    y, x = y - rng.uniform(0, height), x - rng.uniform(0, width)
    along = (math.cos(angle) * x + math.sin(angle) * y) / radius_a
    across = (math.cos(angle) * y - math.sin(angle) * x) / radius_b
    distance = np.sqrt(along * along + across * across).astype(np.float32)
    blob: FloatArray = 1 / (1 + np.exp(np.clip(sharpness * (distance - 1), -20, 20)))
    return blob


def _smooth_noise(
    rng: np.random.Generator, height: int, width: int, rows: int, columns: int, channels: int
) -> FloatArray:
    """Normal noise on a coarse grid, enlarged smoothly to (H, W, channels)."""
    grid = rng.standard_normal((channels, max(rows, 2), max(columns, 2)), dtype=np.float32)
    size = (width, height)
    planes = [Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC) for plane in grid]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def _blurred(mask: FloatArray, reduction: int) -> FloatArray:
    height, width = mask.shape
    small = (max(width // reduction, 2), max(height // reduction, 2))
    coarse = Image.fromarray(mask).resize(small, Image.Resampling.BOX)
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
