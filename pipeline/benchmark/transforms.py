"""What a training script does to a photograph with Pillow: the crops and the normalisation of the
programs that this one is compared with. Loads no DALI.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
_TRIES = 10  # as in Inception's crop and every copy of it


def random_resized_crop(
    image: Image.Image, size: int, area: tuple[float, float] = (0.08, 1.0)
) -> Image.Image:
    """A random box with a share of the `area`, as a square of `size` pixels."""
    box = _random_box(*image.size, area)
    # Cropping and resizing in one call; two calls are no faster.
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def centre_crop(image: Image.Image, resize: int, size: int) -> Image.Image:
    """The centre of `size` pixels a side, once the shorter side has `resize`."""
    width, height = image.size
    shorter = min(image.size)
    image = image.resize(
        (resize * width // shorter, resize * height // shorter), Image.Resampling.BILINEAR
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def randomly_flipped(image: Image.Image) -> Image.Image:
    """The image, mirrored left to right half of the time."""
    if random.random() < 0.5:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def normalised(image: Image.Image) -> Tensor:
    """(3, H, W) float32, by ImageNet's means and deviations."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.float().div_(255).sub_(_MEAN).div_(_STD)


def use_one_thread(_worker: int) -> None:
    """Sets one thread in a worker: workers are processes, and more threads would crowd the
    cores."""
    torch.set_num_threads(1)


def _random_box(width: int, height: int, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """Inception's crop (left, top, right, bottom): a share of the area, 3:4 to 4:3."""
    for _ in range(_TRIES):
        pixels = random.uniform(*area) * width * height
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
