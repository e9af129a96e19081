"""Width and height of an encoded image, from its header and without decoding it, or why DALI would
not decode what has such a header."""

from __future__ import annotations

import io
import logging
import warnings
from typing import BinaryIO, NamedTuple, cast

from PIL.BmpImagePlugin import BmpImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.data.index.decodable import BadHeader, check_bmp, check_png, check_size, refuse
from pipeline.data.index.jpeg import START_OF_IMAGE, read_jpeg, usual_jpeg
from pipeline.data.index.tiff import tiff_size
from pipeline.data.index.window import BadContainer, Window

log = logging.getLogger("trainyard")

# Holds all up to the scan of most JPEGs: quantisation and Huffman tables take about 600 bytes.
_START_BYTES = 2048
_NO_IMAGE = "no image header"

# What they say of a damaged header names no file; the reason that is kept does. For the process, as
# headers are read by several threads, which `catch_warnings` does not separate.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_of_pillow = logging.getLogger("PIL")
_of_pillow.addHandler(logging.NullHandler())  # else stderr takes its errors
_of_pillow.propagate = False


class Header(NamedTuple):
    """What a header says: (width, height) as stored, EXIF orientation not applied.

    (0, 0) if there is none or if DALI does not decode such images to Pillow's pixels: `flaw` is
    then the reason, else empty.
    """

    size: tuple[int, int]
    flaw: str = ""


def image_size(window: Window, offset: int, length: int) -> tuple[int, int]:
    """Return the (width, height) of the image in `length` bytes at `offset`, as `Header` has it.

    OSError if the file cannot be read, BadContainer if it is cut off meanwhile.
    """
    start = window.read(offset, min(length, _START_BYTES))
    jpeg = usual_jpeg(start)
    if jpeg is not None:
        return jpeg[0]
    content = _Range(window, offset, length)
    header = _read(start, content, length)
    if content.failure is not None:  # says nothing about the header
        raise content.failure
    return header.size


def size_of_bytes(content: bytes) -> tuple[int, int]:
    """Return the same for an image in memory."""
    return header_of(content).size


def header_of(content: bytes) -> Header:
    """Return what the header of an image in memory says."""
    jpeg = usual_jpeg(content)
    if jpeg is not None:
        return Header(jpeg[0])
    return _read(content[:_START_BYTES], io.BytesIO(content), len(content))


def _read(start: bytes, file: io.RawIOBase | io.BytesIO, length: int) -> Header:
    """Return what the plugins and the rules of DALI say of a file with these first bytes."""
    buffered = cast(BinaryIO, io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file)
    try:
        size = _size(start, buffered, length)
        check_size(*size)
        return Header(size)
    except BadHeader as error:
        return Header((0, 0), str(error))
    except Exception as error:  # plugins raise nearly anything on a damaged header
        log.debug("no header behind %r", start[:8], exc_info=True)
        words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        unknown = "unknown value " if isinstance(error, KeyError) else ""
        return Header((0, 0), f"{_NO_IMAGE} that can be read ({unknown}{words})")


def _size(start: bytes, file: BinaryIO, length: int) -> tuple[int, int]:
    """Return the size by the file's format, which its first bytes say, whatever its name.

    The plugins are called directly because Image.open refuses large images by a process-wide limit
    that is not ours to lift. BadHeader, or what a plugin raises.
    """
    if start.startswith(START_OF_IMAGE):
        return read_jpeg(file)[0]
    if start.startswith(b"\x89PNG"):
        png = PngImageFile(file)
        check_png(png, start)
        return png.size
    if start.startswith(b"BM"):
        bmp = BmpImageFile(file)
        check_bmp(bmp, start, length)
        return bmp.size
    if start.startswith(b"RIFF"):
        return WebPImageFile(file).size
    if start.startswith(b"MM\0+"):
        refuse("is a BigTIFF of big-endian numbers, which is not read; save it as TIFF")
    if start.startswith((b"II", b"MM")):
        return tiff_size(TiffImageFile(file), length)
    refuse("the file is empty" if length == 0 else _NO_IMAGE)


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
