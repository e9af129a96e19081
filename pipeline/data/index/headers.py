"""Width and height of an encoded image, from its first bytes and without decoding it."""

from __future__ import annotations

import io
import logging

from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.data.index.window import BadContainer, Window

log = logging.getLogger("trainyard")

# What DALI decodes, by its first bytes, whatever the extension says. The plugins are called
# directly because Image.open refuses large images by a process-wide limit that is not ours to
# lift.
_HEADERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8", JpegImageFile),
    (b"\x89PNG", PngImageFile),
    (b"BM", BmpImageFile),
    (b"RIFF", WebPImageFile),
    (b"II", TiffImageFile),
    (b"MM", TiffImageFile),
)
# Holds all up to the scan of most JPEGs: quantisation and Huffman tables take about 600 bytes.
_START_BYTES = 2048
_START_OF_SCAN = 0xDA
_START_OF_FRAME = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what is met in practice


def image_size(window: Window, offset: int, length: int) -> tuple[int, int]:
    """Return the (width, height) of the image in `length` bytes at `offset`, as stored.

    (0, 0) without a readable header. EXIF orientation is not applied. OSError if the file cannot
    be read, BadContainer if it is cut off meanwhile.
    """
    start = window.read(offset, min(length, _START_BYTES))
    jpeg = jpeg_header(start)
    if jpeg is not None:
        return jpeg[0]
    content = _Range(window, offset, length)
    size = _plugin_size(start, content)
    if content.failure is not None:  # says nothing about the header
        raise content.failure
    return size


def size_of_bytes(content: bytes) -> tuple[int, int]:
    """Return the same for an image in memory."""
    jpeg = jpeg_header(content)
    return _plugin_size(content, io.BytesIO(content)) if jpeg is None else jpeg[0]


def jpeg_header(start: bytes) -> tuple[tuple[int, int], int] | None:
    """Return a JPEG's size and the offset of its first scan.

    None unless all segments up to the scan are there and plain; then Pillow decides. ITU-T T.81,
    annex B. 2 us where Pillow, which parses the tables too, takes 15.
    """
    if start[:2] != b"\xff\xd8":
        return None
    size, at = None, 2
    while at + 9 < len(start) and start[at] == 0xFF:
        marker, following = start[at + 1], at + 2 + (start[at + 2] << 8 | start[at + 3])
        if marker == _START_OF_SCAN:
            return (size, at) if size is not None and following <= len(start) else None
        if marker in _START_OF_FRAME:
            height, width = start[at + 5] << 8 | start[at + 6], start[at + 7] << 8 | start[at + 8]
            plain = start[at + 4] == 8 and start[at + 9] in (1, 3, 4) and height and width
            if size is not None or not plain:
                return None
            size = width, height
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF:
            return None  # markers without a length, and fill bytes
        at = following
    return None


def _plugin_size(start: bytes, file: io.RawIOBase | io.BytesIO) -> tuple[int, int]:
    for magic, plugin in _HEADERS:
        if start.startswith(magic):
            buffered = io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file
            try:
                width, height = plugin(buffered).size
                return width, height
            except Exception:  # plugins raise nearly anything on a damaged header
                log.debug("no header behind %r", start[:8], exc_info=True)
    return 0, 0


class _Range(io.RawIOBase):
    """A byte range of a container as a file of its own, for Pillow.

    failure: what reading raised, as Pillow raises OSError for damaged headers too.
    """

    def __init__(self, window: Window, offset: int, length: int) -> None:
        self._window, self._offset, self._length = window, offset, length
        self._at = 0
        self.failure: OSError | BadContainer | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._length - self._at))
        try:
            content = self._window.read(self._offset + self._at, wanted) if wanted else b""
        except (OSError, BadContainer) as error:
            self.failure = error
            raise
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
