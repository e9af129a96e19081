"""What is wrong with an encoded image, as far as its markers and header tell; nothing is decoded.

The rules are those of DALI's decoders: a JPEG needs every marker in its place up to the scan, a
frame header of the size that the manifest recorded, and an end marker somewhere after that (zeros
or anything else may follow it). Stricter in one case: a JPEG without end marker that ends in zeros
may decode, with a warning. A cut TIFF does not show here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO_END = "has no end marker"
"""The reason of a JPEG whose header is right; adding the marker mends it if nothing else lacks."""

_END = b"\xff\xd9"
_SCAN, _END_MARKER = 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those are tables and extensions
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})


def find_flaw(content: NDArray[np.uint8], width: int, height: int) -> str | None:
    """Return why the encoded image (bytes,) uint8 would fail, None if nothing shows.

    width, height: pixels as the manifest recorded them. Kinds go by the first bytes, as decoders
    do, whatever the file's name.
    """
    start = content[:4].tobytes()
    if start.startswith(b"\xff\xd8"):
        return _jpeg_flaw(content, width, height)
    if start == b"\x89PNG" and content.tobytes().rfind(b"IEND") < 0:
        return "is a PNG file that is cut off"
    recorded = 0
    if start == b"RIFF":
        recorded = int.from_bytes(content[4:8].tobytes(), "little") + 8
    elif start.startswith(b"BM"):
        recorded = int.from_bytes(content[2:6].tobytes(), "little")
    if recorded > len(content):
        return f"has {len(content)} bytes, its header says {recorded}: it is cut off"
    return None


def with_end(content: NDArray[np.uint8]) -> bytes:
    """Return a JPEG without end marker with one, whose first half may be there."""
    found = content.tobytes()
    return found + (_END[1:] if found.endswith(_END[:1]) else _END)


def _jpeg_flaw(content: NDArray[np.uint8], width: int, height: int) -> str | None:
    data, at, frame = content.data, 2, False
    length = len(data)
    while True:
        if at + 4 > length:
            return "is cut off in its header"
        if data[at] != 0xFF:
            return f"has no marker where one is due, at byte {at}"
        marker = data[at + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2  # fill bytes may come before a marker
            continue
        if marker == _END_MARKER:
            return "ends before its image data"
        if marker in _FRAMES:
            if at + 10 > length:
                return "is cut off in its header"
            frame = True
            rows, columns = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            if (columns, rows) != (width, height):
                return f"is {columns} x {rows} by its header, the manifest recorded " + (
                    f"{width} x {height}"
                )
        if marker == _SCAN:
            break
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    if not frame:
        return "has no frame header"
    if data[length - 2] == 0xFF and data[length - 1] == _END_MARKER:
        return None
    return None if content.tobytes().rfind(_END, at) >= 0 else NO_END
