"""Reads structures from MATLAB 5 files, as far as ImageNet's devkit needs it.

Own code because SciPy, which reads them all, is a hundred megabytes for one table. The format is
that of MathWorks' "MAT-File Format": text, numbers, cells and structures; what else there is
(sparse matrices, objects, version 7.3, which is HDF5) is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)  # double, single, and integers of 8 to 64 bits
_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MAX_BYTES = 1 << 28  # of one compressed variable: a damaged file must not fill the memory


def read_variables(content: bytes) -> dict[str, Any]:
    """Return each variable by name.

    A structure is a list of dicts by field, in column-major order; text is str (rows joined);
    numbers are float64 arrays of one dimension, cells lists. ValueError for what is no such file,
    damaged, or of a kind that is not read.
    """
    if len(content) < _HEADER_BYTES or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is not a MATLAB 5 file")
    order = "<" if content[126:128] == b"IM" else ">"
    found = {}
    try:
        for kind, body in _elements(content[_HEADER_BYTES:], order):
            if kind == _COMPRESSED:
                inflated = zlib.decompressobj().decompress(body, _MAX_BYTES)
                kind, body = next(_elements(inflated, order))
            if kind == _MATRIX:
                name, value = _matrix(body, order)
                found[name] = value
    except (struct.error, zlib.error, StopIteration, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"it is a damaged MATLAB file ({error!r})") from error
    return found


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element; struct.error where one is cut off."""
    at = 0
    while at < len(content):
        kind, length = struct.unpack_from(order + "II", content, at)
        start = at + 8
        if kind >> 16:  # the short form: both in one word, the bytes in the next
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + length > len(content):
            raise struct.error(f"an element of {length} bytes is cut off")
        yield kind, content[start : start + length]
        # Compressed elements are not padded to 8 bytes.
        end = start + length
        at = end if kind == _COMPRESSED else -(-end // 8) * 8


def _matrix(body: bytes, order: str) -> tuple[str, Any]:
    """Name and value of a matrix element."""
    if not body:  # an empty field
        return "", np.empty(0)
    parts = _elements(body, order)
    _, flags = next(parts)
    (kind,) = struct.unpack_from(order + "I", flags)
    kind &= 0xFF
    _, sizes = next(parts)
    count = int(np.frombuffer(sizes, order + "i4").prod())
    name = next(parts)[1].decode("ascii")
    if kind == _STRUCT:
        _, width = next(parts)
        (length,) = struct.unpack(order + "i", width)
        names = next(parts)[1]
        fields = [
            names[i : i + length].split(b"\0", 1)[0].decode("ascii")
            for i in range(0, len(names), length)
        ]
        return name, [
            {field: _matrix(next(parts)[1], order)[1] for field in fields} for _ in range(count)
        ]
    if kind == _CELL:
        return name, [_matrix(next(parts)[1], order)[1] for _ in range(count)]
    if kind == _CHAR:
        return name, _text(*next(parts, (16, b"")), order)
    if kind not in _NUMERIC:
        raise ValueError(f"it holds a matrix of kind {kind}, which is not read here")
    stored, numbers = next(parts, (9, b""))
    return name, np.frombuffer(numbers, order + _NUMBERS[stored]).astype(np.float64)


def _text(kind: int, characters: bytes, order: str) -> str:
    codec = _TEXTS[kind]
    if codec in ("utf-16", "utf-32"):
        codec += "-le" if order == "<" else "-be"
    return characters.decode(codec)
