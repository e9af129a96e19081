"""TFRecord files: features of TF-slim and TensorFlow Datasets, and what damaged records get."""

import os
import struct
from pathlib import Path

import pytest
from container_writers import draw_images, serialized, write_tfrecord
from tensorboard.summary.writer.record_writer import masked_crc32c

from pipeline.data.index import tfrecord
from pipeline.data.index.window import BadContainer, Entry, opened

IMAGE = draw_images(1)[0][2]


def entries_of(path: Path) -> list[Entry]:
    with opened(path) as window:
        return tfrecord.walk(window)


def entry_of(folder: Path, **features: bytes | int) -> Entry:
    named = {name.replace("__", "/"): value for name, value in features.items()}
    write_tfrecord(folder / "x.tfrecord", [named])
    (entry,) = entries_of(folder / "x.tfrecord")
    with open(folder / "x.tfrecord", "rb") as file:
        file.seek(entry.offset)
        assert file.read(entry.length) == IMAGE
    return entry


def framed(content: bytes) -> bytes:
    """A record by the format's description (tensorflow/core/lib/io/record_writer.h)."""
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]


def test_features_of_tf_slim(tmp_path):
    slim = {"image__encoded": IMAGE, "image__class__label": 1000, "image__filename": b"n1_2.JPEG"}
    found = entry_of(tmp_path, **slim)
    assert (found.label, found.name, found.width, found.height) == (999, b"n1_2.JPEG", 20, 40)
    assert entry_of(tmp_path, **slim, image__class__synset=b"n01440764").label == b"n01440764"
    assert entry_of(tmp_path, **slim, image__class__synset=b"").label == 999


def test_features_of_tensorflow_datasets(tmp_path):
    found = entry_of(tmp_path, image=IMAGE, label=0, file_name=b"some/folder/n1_2.JPEG")
    assert (found.label, found.name) == (0, b"n1_2.JPEG")


def test_without_a_file_name_the_container_and_number_stand_for_it(tmp_path):
    examples = [{"image": IMAGE, "label": number} for number in range(3)]
    write_tfrecord(tmp_path / "x-00000-of-00001", examples)
    names = [entry.name for entry in entries_of(tmp_path / "x-00000-of-00001")]
    assert names == [b"x-00000-of-00001#%08d" % number for number in range(3)]


@pytest.mark.parametrize("features", [["first", "image", "label"], ["label", "image", "last"]])
def test_the_order_of_features_and_large_ones_between_do_not_matter(tmp_path, features):
    """A message may hold its map's entries in any order: one Example for each, joined."""
    values = {"image": IMAGE, "label": 5, "first": b"x" * 9000, "last": b"y" * 70_000}
    content = b"".join(serialized({name: values[name]}) for name in features)
    (tmp_path / "x.tfrecord").write_bytes(framed(content) * 2)
    found = entries_of(tmp_path / "x.tfrecord")
    assert [(entry.label, entry.length) for entry in found] == [(5, len(IMAGE))] * 2


def test_numbers_that_are_not_packed_are_read(tmp_path):
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    feature = field(3, b"\x08\xac\x02")  # int64_list { value: 300 }
    label = field(1, field(1, field(1, b"label") + field(2, feature)))
    content = serialized({"image": IMAGE}) + label
    (tmp_path / "x.tfrecord").write_bytes(framed(content))
    assert [entry.label for entry in entries_of(tmp_path / "x.tfrecord")] == [300]


REFUSED = {
    "no image": ({"label": 1}, "is a record without image/encoded or image; only encoded"),
    "a number for an image": ({"image": 3, "label": 1}, "is a record without image/encoded"),
    "no class": ({"image": IMAGE}, "is a record without a class; write the classes as image/"),
    "TF-slim's background": (
        {"image/encoded": IMAGE, "image/class/label": 0},
        "is a record whose image/class/label is 0; write the classes as numbers from 1",
    ),
    "no label": ({"image": IMAGE, "label": -1}, "is a record whose label is -1; write the"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_record_without_image_or_class_is_an_error(tmp_path, case):
    features, message = REFUSED[case]
    write_tfrecord(tmp_path / "x.tfrecord", [{"image": IMAGE, "label": 1}, features])
    second = os.path.getsize(tmp_path / "x.tfrecord") - len(framed(serialized(features))) + 12
    with pytest.raises(BadContainer) as caught:
        entries_of(tmp_path / "x.tfrecord")
    assert f"x.tfrecord cannot be used: at byte {second} {message}" in str(caught.value)


@pytest.mark.parametrize("byte", range(12))
def test_a_flipped_bit_in_a_records_length_or_its_checksum_is_seen(tmp_path, byte):
    record = framed(serialized({"image": IMAGE, "label": 1}))
    content = bytearray(record + record)
    content[len(record) + byte] ^= 16
    (tmp_path / "x.tfrecord").write_bytes(content)
    with pytest.raises(BadContainer, match=f"at byte {len(record)} a record's length does not"):
        entries_of(tmp_path / "x.tfrecord")


@pytest.mark.parametrize(
    "content", [b"\xff" * 40, b"\x0a\xff\xff\xff\x7f", b"\x0b\x0c", b"\x0a\x03\x0a\x09abc"]
)
def test_a_record_that_is_no_example_is_an_error(tmp_path, content):
    (tmp_path / "x.tfrecord").write_bytes(framed(content))
    with pytest.raises(BadContainer, match=r"not a tf\.train\.Example; copy it anew"):
        entries_of(tmp_path / "x.tfrecord")
