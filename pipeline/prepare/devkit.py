"""ImageNet's development kit: the ids of its classes and of the validation labels.

Its ids are not the labels of training: there, labels follow the sorted names of the class folders
(wnids); ILSVRC2012_ID follows an order of its own.

The table of classes is a MATLAB 5 file, read by our own code because SciPy is a hundred megabytes
for one table. The format is MathWorks' "MAT-File Format", as far as the table needs it: text,
numbers and structures, little-endian.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ConfigError, require

_META = "data/meta.mat"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_MAX_BYTES = 1 << 28  # of a file or variable: a damaged one must not fill the memory

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_NUMERIC = range(6, 16)  # double, single, and integers of 8 to 64 bits
_NUMBERS = {
    1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8",
    13: "<u8",
}  # fmt: skip
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}


@dataclass(frozen=True)
class Synset:
    """One class: its name in WordNet, its words, and how many training images it has."""

    wnid: str
    words: str
    train_images: int


@dataclass(frozen=True)
class Devkit:
    """The classes that images have, in bytewise order of wnid, as training's labels are, and the
    wnid of each validation image: number i of the archive's names at i - 1."""

    synsets: list[Synset]
    val_wnids: list[str]


def read_devkit(path: Path) -> Devkit:
    """Reads ILSVRC2012_devkit_t12.tar.gz; ConfigError for anything else, naming what is missing."""
    files = _unpack(path)
    for name in (_META, _TRUTH):
        require(
            name in files,
            f"--devkit {path} is no ImageNet development kit: it has no {name}; give "
            "ILSVRC2012_devkit_t12.tar.gz",
        )
    try:
        by_id = _synsets(read_variables(files[_META]))
    except ValueError as error:
        raise ConfigError(f"{_META} in --devkit {path} cannot be used: {error}") from error
    truth = files[_TRUTH].decode("ascii", errors="replace").split()
    wrong = [
        f"line {number}: {line}"
        for number, line in enumerate(truth, 1)
        if not line.isdecimal() or int(line) not in by_id
    ]
    require(
        not wrong,
        f"{_TRUTH} in --devkit {path} names no class of meta.mat at {', '.join(wrong[:3])}; "
        "copy the devkit again from its source",
    )
    synsets = sorted(by_id.values(), key=lambda synset: synset.wnid)
    return Devkit(synsets, [by_id[int(line)].wnid for line in truth])


def _unpack(path: Path) -> dict[str, bytes]:
    """The two files of the kit, by the last two parts of their names."""
    found = {}
    try:
        with tarfile.open(path) as kit:
            for member in kit:
                name = "/".join(member.name.split("/")[-2:])
                if name in (_META, _TRUTH) and member.isfile() and member.size < _MAX_BYTES:
                    reader = kit.extractfile(member)
                    assert reader is not None, "a plain file has content"
                    found[name] = reader.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ConfigError(
            f"--devkit {path} cannot be read as a .tar.gz archive ({error}); copy it again from "
            "its source"
        ) from error
    return found


def _synsets(variables: dict[str, Any]) -> dict[int, Synset]:
    """The classes without children, which are those that have images, by ILSVRC2012_ID."""
    rows: Any = variables.get("synsets")
    require(isinstance(rows, list) and bool(rows), "it holds no structure named synsets")
    needed = ("ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")
    missing = [name for name in needed if name not in rows[0]]
    require(not missing, f"its synsets have no {', '.join(missing)}")
    found: dict[int, Synset] = {}
    for row in rows:
        if _scalar(row, "num_children") > 0:
            continue
        identity, wnid, words = _scalar(row, "ILSVRC2012_ID"), row["WNID"], row["words"]
        require(identity not in found, f"ILSVRC2012_ID {identity} occurs twice")
        texts = isinstance(wnid, str) and isinstance(words, str)
        require(texts, f"WNID or words of ILSVRC2012_ID {identity} is no text")
        require(is_plain(wnid), f"{wnid!r} is no plain name of a file or folder")
        found[identity] = Synset(wnid, words, _scalar(row, "num_train_images"))
    names = {synset.wnid for synset in found.values()}
    require(len(names) == len(found), f"{len(found)} classes share {len(names)} wnids")
    return found


def is_plain(name: str) -> bool:
    """Whether a file or folder of that name lies directly in the folder it is written to."""
    return bool(name) and "/" not in name and "\0" not in name and not name.startswith(".")


def _scalar(row: dict[str, Any], field: str) -> int:
    value = np.asarray(row[field])
    whole = value.size == 1 and value.dtype.kind == "f" and value.item().is_integer()
    require(whole, f"{field} is {row[field]!r}, not one whole number")
    return int(value.item())


def read_variables(content: bytes) -> dict[str, Any]:
    """Reads each variable by name.

    A structure is a list of dicts by field, in column-major order; text is str (rows joined);
    numbers are float64 arrays of one dimension. ValueError for what is no such file, damaged, or of
    a kind that is not read.
    """
    if len(content) < _HEADER_BYTES or content[126:128] != b"IM":  # how it says little-endian
        raise ValueError("it is not a MATLAB 5 file")
    found = {}
    try:
        for kind, body in _elements(content[_HEADER_BYTES:]):
            if kind == _COMPRESSED:
                inflated = zlib.decompressobj().decompress(body, _MAX_BYTES)
                kind, body = next(_elements(inflated))
            if kind == _MATRIX:
                name, value = _matrix(body)
                found[name] = value
    except (struct.error, zlib.error, StopIteration, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"it is a damaged MATLAB file ({error!r})") from error
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


def _matrix(body: bytes) -> tuple[str, Any]:
    """Name and value of a matrix element."""
    if not body:  # an empty field
        return "", np.empty(0)
    parts = _elements(body)
    _, flags = next(parts)
    (kind,) = struct.unpack_from("<I", flags)
    kind &= 0xFF
    _, sizes = next(parts)
    count = int(np.frombuffer(sizes, "<i4").prod())
    name = next(parts)[1].decode("ascii")
    if kind == _STRUCT:
        _, width = next(parts)
        (length,) = struct.unpack("<i", width)
        names = next(parts)[1]
        fields = [
            names[i : i + length].split(b"\0", 1)[0].decode("ascii")
            for i in range(0, len(names), length)
        ]
        return name, [{field: _matrix(next(parts)[1])[1] for field in fields} for _ in range(count)]
    if kind == _CHAR:
        codec, characters = next(parts, (16, b""))
        return name, characters.decode(_TEXTS[codec])
    if kind not in _NUMERIC:
        raise ValueError(f"it holds a matrix of kind {kind}, which is not read here")
    stored, numbers = next(parts, (9, b""))
    return name, np.frombuffer(numbers, _NUMBERS[stored]).astype(np.float64)
