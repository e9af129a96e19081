"""TFRecord files of tf.train.Example messages, as TF-slim and TensorFlow Datasets write ImageNet.

A record is its length (8 bytes, little-endian), the length's masked CRC-32C (4), that many bytes,
and their masked CRC-32C (4) (tensorflow/core/lib/io/record_writer.h). Its bytes are an Example
(tensorflow/core/example/feature.proto), of which only the fields' heads and the small values are
read; the protobuf wire format is that of protobuf.dev/programming-guides/encoding.

A file cut between two records looks whole. The index that DALI's tfrecord2idx writes, `<file>.idx`
with lines of `offset size`, reveals the cut if it lies next to the file.

The records' own checksums would cost reading every byte: `damaged_records` does, for `prepare
verify --full`; indexing checks those of the lengths.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Iterator

import google_crc32c

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
_CRC_MASK = 0xA282EAD8
_LONGEST_TEXT = 1 << 16  # a class or file name
_READ_BYTES = 1 << 24

_Range = tuple[int, int]


def walk(window: Window) -> list[Entry]:
    """Return the images of a TFRecord file in its order.

    The class is `image/class/synset`, else the number in `image/class/label` (from 1) or `label`
    (from 0). The name is the last part of `image/filename` or `file_name`, else the container's
    name and the record's number: `train-00000-of-01024#00000012`.

    BadContainer, with the byte, for a damaged, cut (also by its index) or compressed file, and for
    a record without image or class, with two of them, or with two that contradict.
    """
    window.check_not_compressed()
    own_name = os.fsencode(window.path.name)
    entries: list[Entry] = []
    begins = array("q")
    for begin, end in records(window):
        name = b"%b#%08d" % (own_name, len(entries))
        entries.append(_entry(window, name, begin, end))
        begins.append(begin - _HEAD.size)
    path = window.path
    window.check_against_index(path.with_name(f"{path.name}.idx"), 0, begins)
    return entries


def records(window: Window) -> Iterator[_Range]:
    """Return where the bytes of each record lie. BadContainer for a damaged or cut file."""
    offset = 0
    while offset < window.length:
        window.check_inside("a record's head", offset, offset + _HEAD.size)
        head = window.read(offset, _HEAD.size)
        length, checksum = _HEAD.unpack(head)
        if checksum != _masked(google_crc32c.value(head[:8])):
            reason = "a record's length does not match its checksum: damaged or no TFRecord"
            raise window.bad(offset, reason)
        begin = offset + _HEAD.size
        window.check_inside("a record", offset, begin + length + _TRAILER_BYTES)
        yield begin, begin + length
        offset = begin + length + _TRAILER_BYTES


def damaged_records(
    window: Window, progress: Callable[[int], object] = lambda _: None
) -> Iterator[_Range]:
    """Read all of a file; return where records lie whose bytes do not match their checksum.

    `progress` is called with the bytes of each record, its head and checksums included.
    """
    for begin, end in records(window):
        crc = 0
        for at in range(begin, end, _READ_BYTES):
            crc = google_crc32c.extend(crc, window.read(at, min(_READ_BYTES, end - at)))
        if window.read(end, _TRAILER_BYTES) != _masked(crc).to_bytes(_TRAILER_BYTES, "little"):
            yield begin, end
        progress(_HEAD.size + end - begin + _TRAILER_BYTES)


def _entry(window: Window, name: bytes, begin: int, end: int) -> Entry:
    """Return the image of a record; `name` is for one that has none."""
    features = _features(window, begin, end)
    places = {key: _values(window, features[key], 1) for key in _IMAGE if key in features}
    given = {key: found for key, found in places.items() if found}
    keys = " or ".join(key.decode() for key in _IMAGE)
    if not given:
        raise window.bad(begin, f"is a record without {keys}", "only encoded images can be read")
    if sum(map(len, given.values())) > 1:
        fix = "write one image in each record"
        raise window.bad(begin, f"is a record with more than one {keys}", fix)
    ((place,),) = given.values()
    size = image_size(window, place[0], place[1] - place[0])
    paths = [_text(window, features, key, begin) for key in _FILE_NAME]
    named = next((path.rpartition(b"/")[2] for path in paths if path), b"")
    label = _label(window, features, begin)
    return Entry(label, named or name, place[0], place[1] - place[0], *size)


def _label(window: Window, features: dict[bytes, _Range], begin: int) -> bytes | int:
    """Return the class; what tells it twice, by name or by number, must agree."""
    name = _text(window, features, _CLASS_NAME, begin)
    numbers = {}
    for key, first in ((_LABEL_FROM_1, 1), (_LABEL_FROM_0, 0)):
        value = _integer(window, features, key, begin)
        # With a name beside it, 0 may be what a writer had for "none".
        if value is not None and (value >= first or not name):
            if value < first:
                fix = f"write the classes as numbers from {first}, or as image/class/synset"
                raise window.bad(begin, f"is a record whose {key.decode()} is {value}", fix)
            numbers[key] = value - first
    if len(set(numbers.values())) > 1:
        both = " and ".join(f"{key.decode()} (class {n} from 0)" for key, n in numbers.items())
        raise window.bad(begin, f"is a record whose {both} differ", "leave the right one")
    for number in numbers.values() if name else ():
        if wrong := window.pairs.add(number, name):
            fix = "write the same number for the same class, or the name alone"
            raise window.bad(begin, f"is a record that contradicts those before it: {wrong}", fix)
    if name:
        return name
    for key, number in numbers.items():
        window.counts_from = max(window.counts_from, int(key == _LABEL_FROM_1))
        return number
    fix = "write the classes as image/class/synset or image/class/label"
    raise window.bad(begin, "is a record without a class", fix)


def _features(window: Window, begin: int, end: int) -> dict[bytes, _Range]:
    """Return where the wanted features of an Example lie: {name: range of the Feature message}.

    BadContainer for one that stands twice.
    """
    found: dict[bytes, _Range] = {}
    for features in _nested(window, begin, end, 1):
        for entry in _nested(window, *features, 1):
            key = b""
            for number, value in _fields(window, *entry):
                if number == 1:
                    key = window.read(value[0], min(value[1] - value[0], _LONGEST_KEY + 1))
                    if key not in _WANTED:
                        break  # the value, which may be long, is not even read
                elif number == 2 and key:
                    if key in found:
                        reason = f"is a record with two features {key.decode()}"
                        raise window.bad(begin, reason, "write each feature once")
                    found[key] = value
    return found


def _values(window: Window, feature: _Range, kind: int) -> list[_Range]:
    """Return where the first two values of a Feature's list lie (bytes_list: field 1)."""
    found = []
    for one in _nested(window, *feature, kind):
        for value in _nested(window, *one, 1):
            found.append(value)
            if len(found) > 1:
                return found
    return found


def _text(window: Window, features: dict[bytes, _Range], key: bytes, begin: int) -> bytes:
    """Return a name, empty without one."""
    places = _values(window, features[key], 1) if key in features else []
    if len(places) > 1:
        fix = "write one in each record"
        raise window.bad(begin, f"is a record with more than one {key.decode()}", fix)
    if not places:
        return b""
    first, last = places[0]
    if last - first > _LONGEST_TEXT:
        reason = f"is a record whose {key.decode()} has {last - first} bytes, which is no name"
        raise window.bad(begin, reason)
    return window.read(first, last - first)


def _integer(window: Window, features: dict[bytes, _Range], key: bytes, begin: int) -> int | None:
    """Return the number of a Feature (int64_list, field 3; its values, field 1), None without."""
    found: list[int] = []
    for one in _nested(window, *features[key], 3) if key in features else ():
        for number, (at, end) in _fields(window, *one):
            while number == 1 and at < end and len(found) < 2:  # packed or not, one begins here
                value, used = _varint(window, window.read(at, min(10, end - at)), 0, at)
                value &= (1 << 64) - 1
                found.append(value - (1 << 64) if value >> 63 else value)
                at += used
    if len(found) > 1:
        reason = f"is a record with several {key.decode()}, {found[0]} and {found[1]}"
        raise window.bad(begin, reason, "write one label in each record")
    return found[0] if found else None


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


def _masked(crc: int) -> int:
    """Return a CRC-32C as the format stores it."""
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF
