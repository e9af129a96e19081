"""RecordIO of MXNet (`.rec`), as im2rec writes it.

A record is `<II`(magic, cflag << 29 | length), that many bytes, and zeros up to a multiple of 4
(dmlc-core, recordio.h). Its bytes are `<IfQQ`(flag, label, id, id2), `flag` further float labels,
and the image (mxnet.recordio.IRHeader). Where the magic number occurs inside a record at a
multiple of 4, the writer cuts there and drops it: the parts have cflag 1, 2, ..., 2, 3. About 8 of
ImageNet's images are cut so. The magic number at the head of the next part takes the place of the
one dropped, which leaves only the length word between as 4 foreign bytes.

The `.idx` file, lines of `key <tab> offset`, holds only what the walk finds anyway; it shows a
.rec file that was cut between two records, which nothing else does, and must have the same records.
The `.lst` file that im2rec was given, lines of `id <tab> label <tab> path`, has what the records do
not, file names and class folders; it is used where it still lies next to the .rec file, and its
labels must be the records'. Of several labels in a line im2rec writes the first, unless all are
asked for.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.index.headers import image_size, size_of_bytes
from pipeline.data.index.labels import plain_text, shown
from pipeline.data.index.passed import UNUSED_LINES
from pipeline.data.index.window import (
    RECORDIO_LIST,
    SIDE_FILE_BYTES,
    BadContainer,
    Entry,
    Window,
    is_number,
    reading,
)
from pipeline.system.regular import read_regular

GAP_BYTES = 4  # the length word between two parts of a record

_MAGIC = 0xCED7230A
_HEAD = struct.Struct("<II")
_IMAGE_HEAD = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
# An image is one part of at most 2^29 bytes but for the few that have the magic number inside.
_MOST_BYTES, _MOST_GAPS = 1 << 29, 1 << 12


class _Line(NamedTuple):
    """A line of a .lst file: its number from 1, and what it says of the image of an id."""

    number: int
    label: float
    path: bytes


def walk(window: Window) -> list[Entry]:
    """Return the images of a .rec file in its order.

    Labels are numbers from 0. No file names are kept in the format: the container's name and the
    record's number, `train.rec#00000012`, stand for them. With a `.lst` file, the names, and the
    folders' names as classes, come from there.

    BadContainer for a damaged or cut file, also by its `.idx` file where there is one, a record
    that has no single whole label, and a `.lst` file that belongs to another .rec file or has
    another label.
    """
    window.check_not_compressed()
    own_name = os.fsencode(window.path.name)
    entries: list[Entry] = []
    ids: list[int] = []
    begins = array("q")
    offset = 0
    while offset < window.length:
        end, gaps = _record(window, offset)
        name = b"%b#%08d" % (own_name, len(entries))
        entry, number = _entry(window, name, offset + _HEAD.size, end, gaps)
        entries.append(entry)
        ids.append(number)
        begins.append(offset)
        offset = end + -end % 4
    window.check_against_index(window.path.with_suffix(".idx"), 1, begins)
    list_path = window.path.with_suffix(RECORDIO_LIST)
    return _named(window, list_path, entries, ids) if os.path.lexists(list_path) else entries


def _record(window: Window, offset: int) -> tuple[int, list[int]]:
    """Return where the record's last byte ends, and where the length words inside it lie."""
    gaps: list[int] = []
    at, expected = offset, (_WHOLE, _FIRST)
    while True:
        part, length = _part(window, at)
        if part not in expected:
            raise window.bad(at, f"is part {part} of a record where {expected} should come")
        end = at + _HEAD.size + length
        if part in (_WHOLE, _LAST):
            return end, gaps
        if length % 4:
            raise window.bad(at, f"is a part of {length} bytes, which is no multiple of 4")
        at, expected = end, (_MIDDLE, _LAST)
        gaps.append(at + 4)  # behind the magic number, which belongs to the record
        if at - offset > _MOST_BYTES or len(gaps) > _MOST_GAPS:
            reason = f"begins a record of over {at - offset} bytes in {len(gaps)} parts: no image"
            raise window.bad(offset, reason)


def _part(window: Window, offset: int) -> tuple[int, int]:
    window.check_inside("a record's head", offset, offset + _HEAD.size)
    magic, word = _HEAD.unpack(window.read(offset, _HEAD.size))
    if magic != _MAGIC:
        raise window.bad(offset, "no record begins: the file is damaged or not RecordIO")
    length = word & (1 << 29) - 1
    window.check_inside("a record", offset, offset + _HEAD.size + length)
    return word >> 29, length


def _entry(window: Window, name: bytes, begin: int, end: int, gaps: list[int]) -> tuple[Entry, int]:
    """Return the image in the record whose bytes are from `begin` to `end`, and the record's id."""
    if end - begin < _IMAGE_HEAD.size:
        raise window.bad(begin, "is a record without the image header of im2rec")
    flag, label, number, _ = _IMAGE_HEAD.unpack(window.read(begin, _IMAGE_HEAD.size))
    if flag > 1:
        fix = "write the file with one label for each image"
        raise window.bad(begin, f"is a record with {flag} labels", fix)
    image = begin + _IMAGE_HEAD.size + 4 * flag
    if image > end or (gaps and gaps[0] < image):
        raise window.bad(begin, "is a record without the image header of im2rec")
    if flag == 1:
        (label,) = struct.unpack("<f", window.read(image - 4, 4))
    if not (label >= 0 and label.is_integer()):
        fix = "write the file with class numbers from 0"
        raise window.bad(begin, f"is a record with label {label}", fix)
    length = end - image - GAP_BYTES * len(gaps)
    inside = tuple(gap - image for gap in gaps)
    if inside:
        content = np.frombuffer(window.read(image, end - image), dtype=np.uint8)
        size = size_of_bytes(without_gaps(content, inside).tobytes())
    else:
        size = image_size(window, image, length)
    return Entry(int(label), name, image, length, *size, inside), number


def without_gaps(content: NDArray[np.uint8], gaps: Sequence[int]) -> NDArray[np.uint8]:
    """Return `content` without the 4 bytes at each of the `gaps`, counted before any is taken."""
    own = np.ones(len(content), dtype=bool)
    for gap in gaps:
        own[gap : gap + GAP_BYTES] = False
    return content[own]


def _named(
    window: Window, list_path: Path, entries: Sequence[Entry], ids: Sequence[int]
) -> list[Entry]:
    """Return the entries with the names and class folders that the .lst file gives their ids."""
    lines = reading(list_path, lambda: _read_list(list_path))
    fix = f"put the list there that it was written from, or move {list_path} away"
    named, used = [], set[int]()
    for entry, number in zip(entries, ids, strict=True):
        line = lines.get(number)
        if line is None:
            raise window.bad(entry.offset, f"is an image of id {number}, not in {list_path}", fix)
        if number in used:
            raise window.bad(
                entry.offset, f"is a second image of id {number}, which is one in {list_path}", fix
            )
        used.add(number)
        folder, _, name = line.path.rpartition(b"/")
        class_name, label = folder.rpartition(b"/")[2], entry.label
        assert isinstance(label, int), "the format has numbers"
        if line.label != label:
            reason = (
                f"is an image of id {number} with label {label}, where line {line.number} of "
                f"{list_path} has {line.label:g}"
            )
            raise window.bad(entry.offset, reason, fix)
        if class_name and window.pairs.add(label, class_name):
            reason = f"is an image of label {label}, where {list_path} has {shown(line.path)}"
            raise window.bad(entry.offset, f"{reason}, against images before it", fix)
        named.append(entry._replace(name=name, label=class_name or label))
    unused = [line for number, line in lines.items() if number not in used]
    if unused:
        window.passed.add(UNUSED_LINES, unused[0].path, len(unused))
    return named


def _read_list(path: Path) -> dict[int, _Line]:
    """Return the lines of a .lst file by id. BadContainer for what is none; OSError."""
    content = plain_text(read_regular(path, SIDE_FILE_BYTES))
    if content is None:
        raise BadContainer(f"{path} is not plain text, perhaps UTF-16; save it as UTF-8")
    lines: dict[int, _Line] = {}
    for number, text in enumerate(content.splitlines(), start=1):
        first, *labels, last = text.split(b"\t") if b"\t" in text else (b"", b"")
        label = _float(labels[0]) if labels else None
        if label is None or not (is_number(first.strip()) and last.strip()):
            raise BadContainer(
                f"line {number} of {path} is not id, label and path with tabs between; "
                f"put the list there that im2rec was given, or move it away"
            )
        line = _Line(number, label, last.strip())
        before = lines.setdefault(int(first), line)
        if before is not line:
            raise BadContainer(
                f"lines {before.number} and {number} of {path} have the same id {int(first)}, "
                f"{shown(before.path)} and {shown(line.path)}; leave the one that im2rec was given"
            )
    return lines


def _float(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
