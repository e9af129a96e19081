"""Writes images into containers as the formats' descriptions say, by parts that are not ours.

Tar by Python's tarfile; TFRecord frames by TensorBoard's writer and Examples by Google's protobuf;
RecordIO, whose own tool no longer installs, by hand after dmlc-core's recordio.h and MXNet's
IRHeader.
"""

import functools
import io
import json
import re
import struct
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter

from pipeline.data.index import tar
from pipeline.data.index.manifest import Manifest
from pipeline.data.index.recordio import walk as recordio_walk
from pipeline.data.index.tfrecord import walk as tfrecord_walk
from pipeline.data.index.window import Entry, opened

MAGIC = struct.pack("<I", 0xCED7230A)

Images = Sequence[tuple[str, str, bytes]]
"""(class, file name, encoded bytes)"""


def draw_images(count: int, classes: Sequence[str] = ("a", "Z é"), seed: int = 0) -> Images:
    """JPEGs of different sizes and colours, round the classes, in no sorted order."""
    rng = np.random.default_rng(seed)
    drawn = []
    for index in range(count):
        width, height = 20 + index % 13, 40 - index % 17
        encoded = io.BytesIO()
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(encoded, "JPEG")
        name = f"{index * 13 % count:04d} ü.JPEG"
        drawn.append((classes[index % len(classes)], name, encoded.getvalue()))
    return drawn


def write_folders(split: Path, images: Images) -> None:
    for class_name, name, content in images:
        write(split / class_name / name, content)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tar_of(members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive; a content such as b"-> a/1.jpg" makes a symbolic link, b"=> ..." a hard one."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content[:3] in _LINKS:
                member.type, member.linkname = _LINKS[content[:3]], content[3:].decode()
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


_LINKS = {b"-> ": tarfile.SYMTYPE, b"=> ": tarfile.LNKTYPE}


def webdataset_members(
    images: Images, labels: Mapping[str, Any] | None, kind: str = "cls"
) -> Iterable[tuple[str, bytes]]:
    """Flat `<key>.jpg` and `<key>.cls` or `.json`; without `labels` a class's name is its label."""
    for class_name, name, content in images:
        label = class_name if labels is None else labels[class_name]
        key = name.split(".")[0]
        sidecar = json.dumps({"label": label, "width": 5}) if kind == "json" else str(label)
        yield f"{key}.{kind}", sidecar.encode()
        yield f"{key}.{name.split('.', 1)[1]}", content


def tfrecord_of(examples: Iterable[Mapping[str, Any] | bytes]) -> bytes:
    """A file of records; each example maps feature names to bytes, int or float, or is bytes."""
    written = io.BytesIO()
    for example in examples:
        RecordWriter(written).write(example if isinstance(example, bytes) else serialized(example))
    return written.getvalue()


def slim_examples(images: Images, labels: Mapping[str, int] | None) -> Iterable[dict[str, Any]]:
    """What TF-slim's build_imagenet_data.py writes; without `labels` the synset too."""
    for class_name, name, content in images:
        known = {"image/class/synset": class_name.encode()}
        numbers = NUMBERS if labels is None else labels
        yield {
            "image/height": 1,  # not what is trusted
            "image/colorspace": b"RGB",
            "image/class/label": numbers[class_name] + 1,
            "image/class/text": b"tench, Tinca tinca",
            "image/object/bbox/xmin": 0.5,
            "image/filename": name.encode(),
            "image/encoded": content,
        } | (known if labels is None else {})


def serialized(example: Mapping[str, Any]) -> bytes:
    message = example_class()()
    for name, value in example.items():
        feature = message.features.feature[name]
        values = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(value)]
        getattr(feature, values).value.append(value)
    return bytes(message.SerializeToString())


_EXAMPLE = """
name: "e.proto" package: "e" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 type: TYPE_BYTES LIST } }
message_type { name: "FloatList" field { name: "value" number: 1 type: TYPE_FLOAT LIST } }
message_type { name: "Int64List" field { name: "value" number: 1 type: TYPE_INT64 LIST } }
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 MESSAGE type_name: ".e.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 MESSAGE type_name: ".e.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 MESSAGE type_name: ".e.Int64List" oneof_index: 0 }
  oneof_decl { name: "kind" }
}
message_type {
  name: "Features"
  field { name: "feature" number: 1 type: TYPE_MESSAGE LIST type_name: ".e.Features.FeatureEntry" }
  nested_type {
    name: "FeatureEntry"
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 MESSAGE type_name: ".e.Feature" }
    options { map_entry: true }
  }
}
message_type {
  name: "Example" field { name: "features" number: 1 MESSAGE type_name: ".e.Features" }
}
"""
_ABBREVIATIONS = {
    "MESSAGE": "type: TYPE_MESSAGE label: LABEL_OPTIONAL",
    "LIST": "label: LABEL_REPEATED",
}


@functools.cache
def example_class() -> Any:
    """tf.train.Example (tensorflow/core/example/example.proto and feature.proto)."""
    words = re.sub(r" (MESSAGE|LIST) ", lambda found: f" {_ABBREVIATIONS[found[1]]} ", _EXAMPLE)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(words, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))


def recordio_of(records: Iterable[bytes]) -> bytes:
    return b"".join(map(recordio_record, records))


def image_record(label: float, content: bytes, number: int = 0, vector: bool = False) -> bytes:
    """IRHeader and image; `vector` puts the label behind the header, as flag 1 says."""
    if vector:
        return struct.pack("<IfQQf", 1, 99.0, number, 0, label) + content
    return struct.pack("<IfQQ", 0, label, number, 0) + content


def recordio_record(content: bytes) -> bytes:
    """One record, cut where the magic number stands at a multiple of 4 (RecordIOWriter)."""
    parts, begin = [], 0
    for place in range(0, len(content) - 3, 4):
        if content[place : place + 4] == MAGIC:
            parts.append(content[begin:place])
            begin = place + 4
    parts.append(content[begin:])
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    written = b"".join(
        MAGIC + struct.pack("<I", flag << 29 | len(part)) + part
        for flag, part in zip(flags, parts, strict=True)
    )
    return written + b"\0" * (-len(written) % 4)


CLASSES = ("a", "Z é")
NUMBERS = {"a": 0, "Z é": 1}  # not the bytewise order


def shards(images: Images, count: int = 3) -> list[Images]:
    return [images[number::count] for number in range(count)]


def packed(split: Path, images: Images) -> None:
    for number, shard in enumerate(shards(images)):
        members = ((f"{label}/{name}", content) for label, name, content in shard)
        write(split / f"shard-{number:06d}.tar", tar_of(members))


def webdataset(split: Path, images: Images) -> None:
    for number, shard in enumerate(shards(images)):
        kind = ("cls", "json")[number % 2]
        write(split / f"w {number}.tar", tar_of(webdataset_members(shard, NUMBERS, kind)))
    write_class_list(split)


def tfrecord(split: Path, images: Images) -> None:
    for number, shard in enumerate(shards(images)):
        labels = None if number == 1 else NUMBERS
        examples = slim_examples(shard, labels)
        write(split / f"train-{number:05d}-of-00003", tfrecord_of(examples))
    write_class_list(split)


def recordio(split: Path, images: Images) -> None:
    for number, shard in enumerate(shards(images)):
        records = (image_record(NUMBERS[label], content) for label, _, content in shard)
        write(split / f"train{number}.rec", recordio_of(records))
    write_class_list(split)


def write_class_list(split: Path) -> None:
    write(split / "classes.txt", "".join(f"{name}\n" for name in CLASSES).encode())


def listed_recordio(split: Path, images: Images) -> None:
    """With the .lst files of im2rec, whose ids are shuffled."""
    for number, shard in enumerate(shards(images)):
        records, lines = [], []
        for index, (class_name, name, content) in enumerate(shard):
            label, own_id = NUMBERS[class_name], 7 * index % 2003
            records.append(image_record(label, content, own_id))
            lines.append(f"{own_id}\t{label}.0\t{class_name}/{name}\n")
        write(split / f"train{number}.rec", recordio_of(records))
        write(split / f"train{number}.lst", "".join(sorted(lines)).encode())


NAMED: list[Callable[[Path, Images], None]] = [packed, webdataset, tfrecord, listed_recordio]
WRITERS = [*NAMED[:3], recordio]


def walked(path: Path) -> list[Entry]:
    """What the walk of its kind finds in a container."""
    walks = {".tar": tar.walk, ".rec": recordio_walk}
    with opened(path) as window:
        return walks.get(path.suffix, tfrecord_walk)(window)


def contents(manifest: Manifest) -> list[tuple[str, bytes]]:
    """Class and bytes of every image, in order."""
    labels = [manifest.classes[label] for label in manifest.labels]
    return [(label, manifest.read(i).tobytes()) for i, label in enumerate(labels)]
