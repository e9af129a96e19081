"""What DALI makes of PNG and BMP headers: a file that it would refuse, or read as other pixels than
Pillow, is refused here, before it can be part of a batch.

DALI 2.4 fails outside an image's own stage for what its parser does not know, and takes the process
with it when other images of the batch are still being decoded. What stands here was measured file
by file (tests/image_zoo.py), as its documentation does not say it.
"""

from __future__ import annotations

import struct
from typing import NoReturn

from PIL.BmpImagePlugin import BmpImageFile
from PIL.PngImagePlugin import PngImageFile

MOST_PIXELS = 2**30
"""More are refused by the decoder that takes the largest, OpenCV's."""
_PNG_MOST_SIDE = 1_000_000  # libpng's limit
_BMP_PLAIN, _BMP_RLE8, _BMP_FIELDS = 0, 1, 3
_BMP_BITS = {_BMP_PLAIN: (1, 4, 8, 24, 32), _BMP_RLE8: (8,), _BMP_FIELDS: (32,)}
_BMP_NAMES = {0: "no compression", 1: "RLE8", 2: "RLE4", 3: "bit fields", 4: "JPEG", 5: "PNG"}
_BMP_MASKS = ((0xFF0000, 0xFF00, 0xFF), (0, 0, 0))  # blue first, or as without


class BadHeader(Exception):
    """The header of an image that cannot be decoded; the message is the reason."""


def refuse(reason: str) -> NoReturn:
    """Raise BadHeader."""
    raise BadHeader(reason)


def check_size(width: int, height: int) -> None:
    """Raise BadHeader for an image without pixels, or with more than can be decoded."""
    if width < 1 or height < 1:
        refuse(f"is {width} x {height} pixels by its header: an image has at least one")
    if width * height > MOST_PIXELS:
        refuse(f"is {width} x {height} pixels; at most 2^30 are decoded: scale it down")


def check_png(image: PngImageFile, start: bytes) -> None:
    """Raise BadHeader for a PNG that cannot be decoded to Pillow's pixels; `start`: first bytes."""
    if max(image.size) > _PNG_MOST_SIDE:
        width, height = image.size
        refuse(
            f"is a PNG of {width} x {height} pixels; at most {_PNG_MOST_SIDE} a side are decoded"
        )
    method, filtering, interlaced = start[26:29]
    if method or filtering or interlaced > 1:
        refuse(
            f"is a PNG of compression {method}, filter {filtering} and interlacing {interlaced}, "
            "which are not defined: it is damaged"
        )
    if getattr(image, "default_image", False):
        refuse(
            "is an animated PNG whose first frame is not its still image: decoders differ in which "
            "of them they show; save one as PNG"
        )


def check_bmp(image: BmpImageFile, start: bytes, length: int) -> None:
    """Raise BadHeader for a BMP that cannot be decoded to Pillow's pixels.

    `start`: its first bytes, `length`: all of them.
    """
    pixels_at, size = struct.unpack_from("<II", start, 10)
    if size == 12:
        bits, compression, colours = struct.unpack_from("<H", start, 24)[0], _BMP_PLAIN, 0
    else:
        bits, compression = struct.unpack_from("<HI", start, 28)
        colours = struct.unpack_from("<I", start, 46)[0]
    if bits not in _BMP_BITS.get(compression, ()):
        name = _BMP_NAMES.get(compression, f"compression {compression}")
        refuse(f"is a BMP of {bits} bits a pixel with {name}, which is not decoded; save it as PNG")
    if bits <= 8 and (colours > 1 << bits or colours == 1):
        refuse(
            f"is a BMP with a palette of {colours} colours for {bits} bits a pixel; save it anew"
        )
    if compression == _BMP_FIELDS and size < 52:
        masks = struct.unpack_from("<III", start, 54)
        if masks not in _BMP_MASKS:
            words = ", ".join(f"{mask:08x}" for mask in masks)
            refuse(f"is a BMP with the bit fields {words}, which are not decoded; save it as PNG")
    tables = (colours or 1 << bits) * (3 if size == 12 else 4) if bits <= 8 else 0
    if pixels_at < 14 + size + tables:
        refuse(f"is a BMP whose pixels begin at byte {pixels_at}, inside its header: it is damaged")
    width, height = image.size
    end = pixels_at + (width * bits + 31) // 32 * 4 * height
    if compression != _BMP_RLE8 and end > length:
        refuse(f"has {length} bytes, its header needs {end}: it is cut off")
