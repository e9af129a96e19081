"""Runs a `Plan` with Pillow: the second opinion on what DALI makes of the same plan."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.augment import Plan


def execute(plan: Plan, files: Sequence[bytes | NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Decode, crop, resize, mirror and colour image files (their whole bytes).

    Returns (B, size, size, 3) float32 RGB in 0..255 units, neither clipped after the colour offset
    nor normalised. The resize is Pillow's bilinear, which filters when it shrinks.
    """
    return np.stack([_execute_one(plan, index, file) for index, file in enumerate(files)])


def _execute_one(plan: Plan, index: int, file: bytes | NDArray[np.uint8]) -> NDArray[np.float32]:
    y, x, height, width = plan.boxes[index].astype(float)
    with Image.open(io.BytesIO(bytes(file))) as image:
        cut = image.convert("RGB").resize(
            (plan.size, plan.size), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)
        )
    pixels = np.asarray(cut, dtype=np.float32)
    if plan.flips[index]:
        pixels = pixels[:, ::-1]
    return pixels + plan.offsets[index]
