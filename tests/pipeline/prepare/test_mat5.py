"""Tables of the devkit's MATLAB file that would take all memory or the stack, or are none."""

from __future__ import annotations

import re
import struct
import zlib

import pytest
from container_writers import write
from imagenet_archives import meta_mat, tar_of

from pipeline.config import ConfigError
from pipeline.prepare.devkit import read_devkit


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def structure(sizes: bytes, width: int = 8, names: bytes = b"", values: bytes = b"") -> bytes:
    flags = element(6, struct.pack("<II", 2, 0)) + element(5, sizes) + element(1, b"synsets")
    fields = element(5, struct.pack("<i", width)) + element(1, names)
    return element(14, flags + fields + values)


def mat(*elements: bytes) -> bytes:
    head = b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return head + b"".join(elements)


def nested(depth: int, kind: int = 2) -> bytes:
    value = b""
    for _ in range(depth):
        flags = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", 1, 1))
        fields = element(5, struct.pack("<i", 8)) + element(1, b"a".ljust(8, b"\0"))
        value = element(14, flags + element(1, b"synsets") + fields + (value or element(14, b"")))
    return value


def packed(content: bytes) -> bytes:
    inside = zlib.compress(content)
    return struct.pack("<II", 15, len(inside)) + inside


ROW = {"ILSVRC2012_ID": 1, "WNID": "n1", "words": "x", "num_children": 0, "num_train_images": 1}
MATS = {
    "infinite": (meta_mat([ROW | {"num_train_images": float("inf")}]), "is a list|not one whole"),
    "not a number": (meta_mat([ROW | {"ILSVRC2012_ID": float("nan")}]), "not one whole number"),
    "2^31 rows without a field": (mat(structure(b"\xff\xff\xff\x7f" + b"\1\0\0\0")), "7 rows and"),
    "2^31 rows": (
        mat(structure(b"\xff\xff\xff\x7f" * 2, names=b"a".ljust(8, b"\0"))),
        "it has a structure of 4611686014132420609 rows and 1 fields in",
    ),
    "a negative number of rows": (mat(structure(b"\xff" * 8)), "rows and 0 fields in|of 1 rows"),
    "names of no bytes": (mat(structure(bytes(8), width=0)), "with field names of 0 bytes"),
    "names of -1 bytes": (mat(structure(bytes(8), width=-1)), "with field names of -1 bytes"),
    "a field twice": (
        mat(structure(b"\1\0\0\0" * 2, names=b"a".ljust(8, b"\0") * 2, values=element(14, b""))),
        "with two fields of one name",
    ),
    "sizes of 3 bytes": (mat(structure(b"\1\1\1")), "whose sizes take 3 bytes"),
    "deep structures": (mat(nested(3000)), "lie more than 8 deep in each other"),
    "deep cells": (mat(nested(3000, kind=1)), "a matrix of kind 1, which is not read here"),
    "a variable of 1 GB": (mat(packed(bytes(1 << 30))), "its variable is cut off or too large"),
    "many variables": (mat(*[packed(element(9, bytes(8 << 20)))] * 5), "cut off or too large|more"),
    "half a number": (
        mat(element(14, element(6, struct.pack("<II", 6, 0)) + element(5, bytes(8))
                    + element(1, b"synsets") + element(9, b"123"))),
        "it has numbers of 8 bytes in 3 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MATS)
def test_a_meta_mat_that_is_no_table(tmp_path, case):
    content, message = MATS[case]
    base = "kit/data/"
    truth = {f"{base}ILSVRC2012_validation_ground_truth.txt": b"1\n"}
    path = write(tmp_path / "kit.tar.gz", tar_of({f"{base}meta.mat": content} | truth, "w:gz"))
    wanted = f"^data/meta.mat in --devkit {path} cannot be used: .*({message})"
    with pytest.raises(ConfigError, match=wanted) as caught:
        read_devkit(path)
    assert len(str(caught.value)) < 2000


def test_a_label_of_the_devkit_with_5000_digits(tmp_path):
    files = {"kit/data/meta.mat": meta_mat([ROW])}
    truth = {"kit/data/ILSVRC2012_validation_ground_truth.txt": b"1\n" + b"9" * 5000}
    path = write(tmp_path / "kit.tar.gz", tar_of(files | truth, "w:gz"))
    with pytest.raises(
        ConfigError, match=re.escape("at line 2: " + "9" * 40 + "; copy the devkit")
    ):
        read_devkit(path)
