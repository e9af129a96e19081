"""TFRecord files of tf.train.Example messages, as TF-slim and TensorFlow Datasets write ImageNet.

A record is its length (8 bytes, little-endian), the length's masked CRC-32C (4), that many bytes,
and their masked CRC-32C (4) (tensorflow/core/lib/io/record_writer.h). Its bytes are an Example
(tensorflow/core/example/feature.proto), of which only the fields' heads and the small values are
read; the protobuf wire format is that of protobuf.dev/programming-guides/encoding.

A file cut between two records looks whole. The index that DALI's tfrecord2idx writes, `<file>.idx`
with lines of `offset size`, reveals the cut if it lies next to the file.

The images' own checksums would cost reading every byte and are not checked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from pipeline.data.index.headers import image_size
from pipeline.data.index.window import Entry, Window

# TF-slim: labels count from 1. TensorFlow Datasets: from 0.
_IMAGE = (b"image/encoded", b"image")
_CLASS_NAME = b"image/class/synset"
_LABEL_FROM_1, _LABEL_FROM_0 = b"image/class/label", b"label"
_FILE_NAME = (b"image/filename", b"file_name")
_WANTED = {*_IMAGE, _CLASS_NAME, _LABEL_FROM_1, _LABEL_FROM_0, *_FILE_NAME}
_LONGEST_KEY = max(map(len, _WANTED))

_HEAD = struct.Struct("<QI")
_TRAILER_BYTES = 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CRC_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected (RFC 3720, appendix B.4)
_CRC_MASK = 0xA282EAD8

_Range = tuple[int, int]


def walk(window: Window) -> list[Entry]:
    """Return the images of a TFRecord file in its order.

    The class is `image/class/synset`, else the number in `image/class/label` (from 1) or `label`
    (from 0). The name is the last part of `image/filename` or `file_name`, else the container's
    name and the record's number: `train-00000-of-01024#00000012`.

    BadContainer, with the byte, for a damaged, cut (also by its index) or compressed file, and for
    a record without image or class.
    """
    window.check_not_compressed()
    own_name = os.fsencode(window.path.name)
    table = _crc_table()
    entries: list[Entry] = []
    offset = 0
    while offset < window.length:
        window.check_inside("a record's head", offset, offset + _HEAD.size)
        head = window.read(offset, _HEAD.size)
        length, checksum = _HEAD.unpack(head)
        if checksum != _masked_crc(table, head[:8]):
            reason = "a record's length does not match its checksum: damaged or no TFRecord"
            raise window.bad(offset, reason)
        begin = offset + _HEAD.size
        window.check_inside("a record", offset, begin + length + _TRAILER_BYTES)
        name = b"%b#%08d" % (own_name, len(entries))
        entries.append(_entry(window, name, begin, begin + length))
        offset = begin + length + _TRAILER_BYTES
    path = window.path
    window.check_against_index(path.with_name(f"{path.name}.idx"), offset_column=0)
    return entries


def _entry(window: Window, name: bytes, begin: int, end: int) -> Entry:
    """Return the image of a record; `name` is for one that has none."""
    features = _features(window, begin, end)
    image = next((features[key] for key in _IMAGE if key in features), None)
    place = None if image is None else _first_bytes(window, image)
    if place is None:
        keys = " or ".join(key.decode() for key in _IMAGE)
        raise window.bad(begin, f"is a record without {keys}", "only encoded images can be read")
    size = image_size(window, place[0], place[1] - place[0])
    paths = [_text(window, features[key]) for key in _FILE_NAME if key in features]
    named = next((path.rpartition(b"/")[2] for path in paths if path), b"")
    label = _label(window, features, begin)
    return Entry(label, named or name, place[0], place[1] - place[0], *size)


def _label(window: Window, features: dict[bytes, _Range], begin: int) -> bytes | int:
    if _CLASS_NAME in features and (name := _text(window, features[_CLASS_NAME])):
        return name
    for key, first in ((_LABEL_FROM_1, 1), (_LABEL_FROM_0, 0)):
        if key in features and (number := _first_integer(window, features[key])) is not None:
            if number < first:
                fix = f"write the classes as numbers from {first}, or as image/class/synset"
                raise window.bad(begin, f"is a record whose {key.decode()} is {number}", fix)
            return number - first
    fix = "write the classes as image/class/synset or image/class/label"
    raise window.bad(begin, "is a record without a class", fix)


def _features(window: Window, begin: int, end: int) -> dict[bytes, _Range]:
    """Return where the wanted features of an Example lie: {name: range of the Feature message}."""
    found = {}
    for features in _nested(window, begin, end, 1):
        for entry in _nested(window, *features, 1):
            key = b""
            for number, value in _fields(window, *entry):
                if number == 1:
                    key = window.read(value[0], min(value[1] - value[0], _LONGEST_KEY + 1))
                    if key not in _WANTED:
                        break  # the value, which may be long, is not even read
                elif number == 2 and key:
                    found[key] = value
    return found


def _first_bytes(window: Window, feature: _Range) -> _Range | None:
    """Return where the first string of a Feature lies (bytes_list, field 1; its value, field 1)."""
    lists = _nested(window, *feature, 1)
    return next((value for one in lists for value in _nested(window, *one, 1)), None)


def _text(window: Window, feature: _Range) -> bytes:
    place = _first_bytes(window, feature)
    return b"" if place is None else window.read(place[0], place[1] - place[0])


def _first_integer(window: Window, feature: _Range) -> int | None:
    """Return the first number of a Feature (int64_list, field 3; its value, field 1)."""
    for one in _nested(window, *feature, 3):
        for number, (begin, end) in _fields(window, *one):
            if number == 1 and begin < end:  # packed or not, a number begins here
                value = _varint(window, window.read(begin, min(10, end - begin)), 0, begin)[0]
                return value - (1 << 64) if value >> 63 else value
    return None


def _nested(window: Window, begin: int, end: int, wanted: int) -> Iterator[_Range]:
    return (place for number, place in _fields(window, begin, end) if number == wanted)


def _fields(window: Window, begin: int, end: int) -> Iterator[tuple[int, _Range]]:
    """Walk a message: (field number, range of its value)."""
    while begin < end:
        start = window.read(begin, min(20, end - begin))
        tag, at = _varint(window, start, 0, begin)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, at = _varint(window, start, at, begin)
        elif kind == _VARINT:
            length = _varint(window, start, at, begin)[1] - at
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(kind, end)
        value = begin + at
        if value + length > end:
            raise window.bad(begin, "is a message whose parts do not fit: not a tf.train.Example")
        yield number, (value, value + length)
        begin = value + length


def _varint(window: Window, content: bytes, at: int, offset: int) -> tuple[int, int]:
    """Return the number at `at` of `content` and where it ends; `offset` is for the message."""
    value = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise window.bad(offset, "is a number that does not end: not a tf.train.Example")


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CRC_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


def _masked_crc(table: list[int], content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF
