"""What the makers of the zoo's files share: its picture in every mode, and cuts into files."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

Specimen = tuple[str, bytes]
"""File name and content."""
Specimens = Iterator[Specimen]

SIZE = (37, 29)
"""Width and height of most: neither is a multiple of 8."""


def picture(channels: int = 3, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth picture (H, W, channels) uint8, which lossy codecs change little."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(float)
    waves = [127 + 60 * np.sin(x / (5 + k) + k) + 60 * np.cos(y / (7 + k)) for k in range(channels)]
    return np.stack(waves, -1).clip(0, 255).astype(np.uint8)


def levels(bits: int, channels: int = 1) -> np.ndarray:
    """The picture in numbers of `bits` bits."""
    return (picture(channels).astype(np.int64) << 8 | picture(channels)) >> (16 - bits)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def of_mode(mode: str) -> Image.Image:
    """The picture in one of Pillow's modes."""
    rgb = Image.fromarray(picture(3))
    if mode == "F":
        return Image.fromarray(picture(1)[..., 0].astype(np.float32))
    if mode == "I":
        return Image.fromarray(picture(1)[..., 0].astype(np.int32))
    if mode.startswith("I;16"):
        return Image.fromarray(levels(16)[..., 0].astype(np.uint16))
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    if mode in ("LA", "RGBA"):
        image = rgb.convert(mode)
        image.putalpha(Image.fromarray(picture(4)[..., 3]))
        return image
    return rgb.convert(mode)


def exif_turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def inserted(content: bytes, segment: bytes, at: int = 2) -> bytes:
    return content[:at] + segment + content[at:]


def with_byte(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + bytes([value]) + content[at + 1 :]
