"""Reads the table of ImageNet's classes, a MATLAB 5 file.

By our own code because SciPy is a hundred megabytes for one table. The format is MathWorks'
"MAT-File Format", as far as the table needs it: text, numbers and structures, little-endian.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_MOST_BYTES = 1 << 25  # of all variables unpacked: a damaged file must not fill the memory
_MOST_DEEP = 8  # structures in structures: the table has one level

_HEADER_BYTES = 128
_ELEMENT_BYTES = 8  # the least that an element takes
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_NUMERIC = range(6, 16)  # double, single, and integers of 8 to 64 bits
_NUMBERS = {
    1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8",
    13: "<u8",
}  # fmt: skip
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}


def read_variables(content: bytes) -> dict[str, Any]:
    """Reads each variable by name.

    A structure is a list of dicts by field, in column-major order; text is str (rows joined);
    numbers are float64 arrays of one dimension. ValueError for what is no such file, damaged, too
    large, or of a kind that is not read.
    """
    if len(content) < _HEADER_BYTES or content[126:128] != b"IM":  # how it says little-endian
        raise ValueError("it is not a MATLAB 5 file")
    found, left = {}, _MOST_BYTES
    try:
        for kind, body in _elements(content[_HEADER_BYTES:]):
            if kind == _COMPRESSED:
                unpacking = zlib.decompressobj()
                inflated = unpacking.decompress(body, left)
                if not unpacking.eof:  # nor is its checksum looked at before the end
                    raise ValueError("its variable is cut off or too large")
                kind, body = next(_elements(inflated))
            left -= len(body)
            if left <= 0:
                raise ValueError(f"its variables have more than {_MOST_BYTES} bytes")
            if kind == _MATRIX:
                name, value = _matrix(body, 0)
                found[name] = value
    except (struct.error, zlib.error, StopIteration, UnicodeDecodeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"  # `repr` may hold the whole file
        raise ValueError(f"it is a damaged MATLAB file ({reason})") from error
    return found


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element; struct.error where one is cut off."""
    at = 0
    while at < len(content):
        kind, length = struct.unpack_from("<II", content, at)
        start = at + 8
        if kind >> 16:  # the short form: both in one word, the bytes in the next
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + length > len(content):
            raise struct.error(f"an element of {length} bytes is cut off")
        yield kind, content[start : start + length]
        # Compressed elements are not padded to 8 bytes.
        end = start + length
        at = end if kind == _COMPRESSED else -(-end // 8) * 8


def _matrix(body: bytes, depth: int) -> tuple[str, Any]:
    """Name and value of a matrix element, which lies in `depth` structures."""
    if depth > _MOST_DEEP:
        raise ValueError(f"its structures lie more than {_MOST_DEEP} deep in each other")
    if not body:  # an empty field
        return "", np.empty(0)
    parts = _elements(body)
    _, flags = next(parts)
    (kind,) = struct.unpack_from("<I", flags)
    kind &= 0xFF
    _, sizes = next(parts)
    if len(sizes) % 4 or len(sizes) > 4 * 32:
        raise ValueError(f"it has a matrix whose sizes take {len(sizes)} bytes")
    count = math.prod(np.frombuffer(sizes, "<i4").tolist())
    name = next(parts)[1].decode("ascii")
    if kind == _STRUCT:
        return name, _rows(parts, count, len(body), depth)
    if kind == _CHAR:
        codec, characters = next(parts, (16, b""))
        return name, characters.decode(_TEXTS[codec])
    if kind not in _NUMERIC:
        raise ValueError(f"it holds a matrix of kind {kind}, which is not read here")
    stored, numbers = next(parts, (9, b""))
    code = _NUMBERS[stored]
    if len(numbers) % np.dtype(code).itemsize:
        raise ValueError(
            f"it has numbers of {np.dtype(code).itemsize} bytes in {len(numbers)} bytes"
        )
    return name, np.frombuffer(numbers, code).astype(np.float64)


def _rows(
    parts: Iterator[tuple[int, bytes]], count: int, length: int, depth: int
) -> list[dict[str, Any]]:
    """Rows of a structure that `length` bytes hold, which says that it has `count`."""
    _, width = next(parts)
    (size,) = struct.unpack("<i", width)
    names = next(parts)[1]
    if not 0 < size <= 64:
        raise ValueError(f"it has a structure with field names of {size} bytes")
    fields = [
        names[i : i + size].split(b"\0", 1)[0].decode("ascii") for i in range(0, len(names), size)
    ]
    if count < 0 or not fields or count * len(fields) * _ELEMENT_BYTES > length:
        raise ValueError(
            f"it has a structure of {count} rows and {len(fields)} fields in {length} bytes"
        )
    if len(set(fields)) < len(fields):
        raise ValueError("it has a structure with two fields of one name")
    return [
        {field: _matrix(next(parts)[1], depth + 1)[1] for field in fields} for _ in range(count)
    ]
