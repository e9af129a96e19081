"""Flaws that the whole bytes of an image show without decoding it: data that end too early, and
checksums. A file's header is `headers`' part."""

from __future__ import annotations

import io
import zlib

from pipeline.data.index.decodable import BadHeader
from pipeline.data.index.jpeg import START_OF_IMAGE, read_jpeg

NO_END = "has no end marker"
"""The reason for a JPEG with a valid header; adding the marker repairs it if no data is missing."""

_END = b"\xff\xd9"
_PNG_CUT = "is a PNG file that is cut off"
# Whose checksums libpng compares; it only warns of the others'.
_PNG_CHECKED = (b"IHDR", b"PLTE", b"IDAT")
_PNG_PALETTE = 3


def file_flaw(content: bytes) -> str | None:
    """Return why an image file with a good header would not be decoded, None if nothing shows."""
    if content.startswith(START_OF_IMAGE):
        return _jpeg_flaw(content)
    if content.startswith(b"\x89PNG"):
        return _png_flaw(content)
    recorded = 0
    if content.startswith(b"RIFF"):
        recorded = int.from_bytes(content[4:8], "little") + 8
    elif content.startswith(b"BM") and content[30:34] == b"\x01\0\0\0":  # run lengths
        recorded = int.from_bytes(content[2:6], "little")
    if recorded > len(content):
        return f"has {len(content)} bytes, its header says {recorded}: it is cut off"
    return None


def _jpeg_flaw(content: bytes) -> str | None:
    try:
        _, scan = read_jpeg(io.BytesIO(content))
    except BadHeader as error:
        return str(error)
    # The end mark of a thumbnail in the header comes before the scan, and other bytes may follow.
    return None if content.rfind(_END, scan) >= 0 else NO_END


def _png_flaw(content: bytes) -> str | None:
    """Return what libpng would find wrong with the chunks up to the last."""
    at, seen = 8, set[bytes]()
    while at + 12 <= len(content):
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        end = at + 12 + length
        if name == b"IEND":
            return None if b"IDAT" in seen else "is a PNG file without data"
        if end > len(content):
            return _PNG_CUT
        shown = name.decode("latin-1")
        if name in _PNG_CHECKED:
            if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(
                content[end - 4 : end], "big"
            ):
                return f"is a PNG file whose chunk {shown} has a wrong checksum: it is damaged"
        elif name[:1].isupper():
            return f"is a PNG file with the chunk {shown!r}, which is not known and not optional"
        if name == b"PLTE" and (length % 3 or length == 0 or length > 3 * 256):
            return f"is a PNG file with a palette of {length} bytes: it is damaged"
        if name == b"IDAT" and content[25] == _PNG_PALETTE and b"PLTE" not in seen:
            return "is a PNG file of palette colours without a palette"
        seen.add(name)
        at = end
    return _PNG_CUT
