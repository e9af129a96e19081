"""Runs a `Plan` with Pillow: the second opinion on what DALI makes of the same plan."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.crops import Plan

File = bytes | NDArray[np.uint8]
"""The whole bytes of an image file."""


def execute(plan: Plan, files: Sequence[File]) -> NDArray[np.float32]:
    """Decode, crop, resize, mirror and colour image files.

    Returns (B, *plan.shape, 3) float32 RGB in 0..255 units, neither clipped after the colour offset
    nor normalised. The resize is Pillow's bilinear, which filters when it shrinks.
    """
    return np.stack([_execute_one(plan, index, file) for index, file in enumerate(files)])


def _execute_one(plan: Plan, index: int, file: File) -> NDArray[np.float32]:
    y, x, height, width = plan.boxes[index].astype(float)
    cut = _rgb(file).resize(
        plan.shape[::-1], Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)
    )
    pixels = np.asarray(cut, dtype=np.float32)
    if plan.flips[index]:
        pixels = pixels[:, ::-1]
    return np.asarray(pixels + plan.offsets[index], dtype=np.float32)


def torchvision_center_crop(file: File, resize: int, size: int) -> NDArray[np.float32]:
    """What torchvision's Resize(resize) and CenterCrop(size) make of an image on Pillow.

    Returns (size, size, 3) float32 RGB in 0..255 units. The whole image is resized, its longer side
    to int(resize * long / short), and cut at round((side - size) / 2), as in torchvision's
    transforms/functional.py. The sides are at least `resize`, so that no padding is needed.
    """
    image = _rgb(file)
    shorter = min(image.size)
    width, height = (int(resize * side / shorter) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32)


def inside(plan: Plan, heights: NDArray[np.int32], widths: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Output pixels whose filter stays inside the image, (B, *plan.shape); sizes (B,) in pixels.

    Beyond the image's edge DALI repeats the last pixel and Pillow leaves it out, which makes up to
    4 levels of difference there.
    """
    mask = np.ones((len(heights), *plan.shape), dtype=bool)
    for index, (y, x, high, wide) in enumerate(plan.boxes.astype(float)):
        reach_y, reach_x = max(1.0, high / plan.shape[0]), max(1.0, wide / plan.shape[1])
        left, right = (-1, 0) if plan.flips[index] else (0, -1)
        mask[index, 0] &= y >= reach_y
        mask[index, -1] &= y + high + reach_y <= heights[index]
        mask[index, :, left] &= x >= reach_x
        mask[index, :, right] &= x + wide + reach_x <= widths[index]
    return mask


def _rgb(file: File) -> Image.Image:
    with Image.open(io.BytesIO(bytes(file))) as image:
        return image.convert("RGB")
