"""What torchvision's TrivialAugmentWide, RandAugment and RandomErasing do to Pillow images, written
anew from its documentation for the tests: torchvision itself is not installed."""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageEnhance, ImageOps

from pipeline.data.augmentations import Operation

ENHANCERS = {
    Operation.BRIGHTNESS: ImageEnhance.Brightness,
    Operation.COLOR: ImageEnhance.Color,
    Operation.CONTRAST: ImageEnhance.Contrast,
    Operation.SHARPNESS: ImageEnhance.Sharpness,
}
SIGNED = frozenset(range(Operation.SHEAR_X, Operation.POSTERIZE))
WITHOUT_STRENGTH = {Operation.IDENTITY, Operation.AUTOCONTRAST, Operation.EQUALIZE}


def ranges(kind: str, shape: tuple[int, int]) -> dict[Operation, torch.Tensor]:
    """The 31 magnitudes of each operation that has any, in torchvision's units."""
    wide = kind == "trivial"
    height, width = shape
    enhanced = torch.linspace(0.0, 0.99 if wide else 0.9, 31)
    sheared = torch.linspace(0.0, 0.99 if wide else 0.3, 31)
    lost = torch.arange(31) / (30 / (6 if wide else 4))
    return {
        Operation.SHEAR_X: sheared,
        Operation.SHEAR_Y: sheared,
        Operation.TRANSLATE_X: torch.linspace(0.0, 32.0 if wide else 150.0 / 331.0 * width, 31),
        Operation.TRANSLATE_Y: torch.linspace(0.0, 32.0 if wide else 150.0 / 331.0 * height, 31),
        Operation.ROTATE: torch.linspace(0.0, 135.0 if wide else 30.0, 31),
        **dict.fromkeys(ENHANCERS, enhanced),
        Operation.POSTERIZE: 8 - lost.round().int(),
        Operation.SOLARIZE: torch.linspace(255.0, 0.0, 31),
    }


def apply(image: Image.Image, operation: int, magnitude: float) -> Image.Image:
    """An operation with a magnitude in torchvision's units; bilinear, black beyond the image."""
    if operation == Operation.SHEAR_X:
        return affine(image, shear=(magnitude, 0.0))
    if operation == Operation.SHEAR_Y:
        return affine(image, shear=(0.0, magnitude))
    if operation == Operation.TRANSLATE_X:
        return affine(image, translate=(int(magnitude), 0))
    if operation == Operation.TRANSLATE_Y:
        return affine(image, translate=(0, int(magnitude)))
    if operation == Operation.ROTATE:
        return image.rotate(magnitude, Image.Resampling.BILINEAR)
    if operation in ENHANCERS:
        return ENHANCERS[Operation(operation)](image).enhance(1.0 + magnitude)
    if operation == Operation.POSTERIZE:
        return ImageOps.posterize(image, int(magnitude))
    if operation == Operation.SOLARIZE:
        return ImageOps.solarize(image, magnitude)
    if operation == Operation.AUTOCONTRAST:
        return ImageOps.autocontrast(image)
    if operation == Operation.EQUALIZE:
        return ImageOps.equalize(image)
    return image


def affine(
    image: Image.Image, translate: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> Image.Image:  # fmt: skip
    """The inverse of x' = x - a y, y' = y - b x, about the top left corner, for a shear (a, b)."""
    across, down = shear
    assert not (across and down), "one at a time"
    matrix = (1.0, across, float(-translate[0]), down, 1.0, float(-translate[1]))
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=None
    )


def erased_box(
    draws: list[float], probability: float, area: tuple[float, float],
    aspect: tuple[float, float], shape: tuple[int, int],
) -> list[int]:  # fmt: skip
    """RandomErasing's rectangle (y, x, h, w), zeros for none, with the uniform numbers of one
    position in place of its generator."""
    height, width = shape
    if draws[0] >= probability:
        return [0, 0, 0, 0]
    for attempt in range(10):
        size = height * width * (area[0] + draws[1 + attempt] * (area[1] - area[0]))
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + draws[11 + attempt] * (high - low))
        high_side, wide_side = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
        if high_side < height and wide_side < width:
            y = int(draws[21] * (height - high_side + 1))
            x = int(draws[22] * (width - wide_side + 1))
            return [y, x, high_side, wide_side]
    return [0, 0, 0, 0]
