"""A JPEG's header, read as DALI's parser and libjpeg together read it: what either of them does not
know is refused. ITU-T T.81, annex B."""

from __future__ import annotations

from typing import BinaryIO

from pipeline.data.index.decodable import MOST_PIXELS, refuse

START_OF_IMAGE = b"\xff\xd8"
_START_OF_SCAN = 0xDA
# Baseline, extended, progressive; for arithmetic coding, sequential and progressive.
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC8, 0xCB, 0xCD, 0xCE, 0xCF}
# Tables, number of lines, restart interval, applications' own, comment. What they hold is not read.
_PASSED = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE}
_RESTARTS = set(range(0xD0, 0xD8))
_ADOBE, _ADOBE_BYTES = 0xEE, 14
_MOST_SIDE = 65500  # libjpeg's
_USUAL = _PASSED - {0xCC, 0xDC}
_USUAL_FRAMES = {0xC0, 0xC1, 0xC2}

Found = tuple[tuple[int, int], int]
"""(width, height), and the offset of the first scan."""


def usual_jpeg(start: bytes) -> Found | None:
    """Return what a JPEG's first bytes say, in 2 us; None unless its header is there and usual.

    `read_jpeg` says what it is then.
    """
    if start[:2] != START_OF_IMAGE:
        return None
    size, components, adobe, at = None, 0, False, 2
    while at + 9 < len(start) and start[at] == 0xFF:
        marker, length = start[at + 1], start[at + 2] << 8 | start[at + 3]
        if marker == _START_OF_SCAN:
            whole = length > 2 and at + 2 + length <= len(start)
            return (
                None if size is None or not whole or (components == 4 and not adobe) else (size, at)
            )
        if marker in _USUAL_FRAMES:
            height, width = start[at + 5] << 8 | start[at + 6], start[at + 7] << 8 | start[at + 8]
            components = start[at + 9]
            plain = start[at + 4] == 8 and components in (1, 3, 4) and length == 8 + 3 * components
            sides = 0 < height <= _MOST_SIDE and 0 < width <= _MOST_SIDE
            if size is not None or not (plain and sides) or width * height > MOST_PIXELS:
                return None
            size = width, height
        elif marker not in _USUAL or length < 2:
            return None
        elif marker == _ADOBE and length >= _ADOBE_BYTES and start[at + 4 : at + 9] == b"Adobe":
            adobe = True
        at += 2 + length
    return None


def read_jpeg(file: BinaryIO) -> Found:
    """Return what the header of a JPEG says. BadHeader, with the reason, if it is not decoded."""
    file.seek(2)
    size, components, adobe = None, 0, False
    while True:
        at = file.tell()
        marker = _next_marker(file)
        length = int.from_bytes(_part(file, 2), "big")
        if length < 2:
            refuse(f"has a JPEG segment of {length} bytes: it is damaged")
        if marker == _START_OF_SCAN:
            break
        following = file.tell() + length - 2
        if marker in _FRAMES:
            if size is not None:
                refuse("has two JPEG frame headers: it is damaged")
            size, components = _frame(_part(file, length - 2))
        elif marker == _ADOBE and length >= _ADOBE_BYTES:
            adobe = adobe or _part(file, 5) == b"Adobe"
        elif marker in _OTHER_FRAMES:
            refuse(f"is a JPEG of a process (marker FF{marker:02X}) that is not decoded, such as "
                   "lossless or hierarchical; save it anew")  # fmt: skip
        elif marker not in _PASSED | _RESTARTS:
            refuse(f"has the marker FF{marker:02X} in its JPEG header, which is not decoded")
        file.seek(following)
    if size is None:
        refuse("has a JPEG scan but no frame header: it is damaged")
    if components == 4 and not adobe:
        refuse("is a CMYK JPEG without Adobe's marker, which decoders read in two ways; save it "
               "as RGB")  # fmt: skip
    _part(file, length - 2)  # which says what the scan holds
    return size, at


def _frame(content: bytes) -> tuple[tuple[int, int], int]:
    """Return the size and the number of components that a frame header says."""
    if len(content) < 6 or len(content) != 6 + 3 * content[5]:
        refuse("has a JPEG frame header of a wrong length: it is damaged")
    bits, components = content[0], content[5]
    height, width = content[1] << 8 | content[2], content[3] << 8 | content[4]
    if bits != 8:
        refuse(f"is a JPEG of {bits} bits a sample, where 8 are decoded; save it with 8")
    if components not in (1, 3, 4):
        refuse(f"is a JPEG of {components} components, where 1, 3 or 4 are decoded")
    if not (0 < width <= _MOST_SIDE and 0 < height <= _MOST_SIDE):
        refuse(f"is a JPEG of {width} x {height} pixels; 1 to {_MOST_SIDE} a side are decoded")
    return (width, height), components


def _next_marker(file: BinaryIO) -> int:
    """Return the marker that follows, behind any number of fill bytes."""
    first, second = _part(file, 1), _part(file, 1)
    if first == b"\xff":
        while second == b"\xff":
            second = _part(file, 1)
    if first != b"\xff" or second == b"\0":
        refuse(f"has the bytes {(first + second).hex()} where a JPEG marker belongs: it is damaged")
    return second[0]


def _part(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        refuse("is cut off in its header")
    return content
