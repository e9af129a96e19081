"""Files made to take all memory, all time or the whole stack: refused in one sentence, at once."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import tarfile
from pathlib import Path

import cifar_archives
import numpy as np
import pytest
from cifar_archives import pickled
from container_writers import (
    MAGIC,
    draw_images,
    image_record,
    recordio_of,
    serialized,
    tar_of,
    tfrecord_of,
    walked,
    write,
)

from pipeline.config import ConfigError
from pipeline.data.cifar import open_cifar
from pipeline.data.exclusion import read_list
from pipeline.data.index.window import BadContainer
from pipeline.prepare.devkit import read_devkit

IMAGE = draw_images(1)[0][2]


def refused(path: Path, message: str) -> None:
    with pytest.raises(BadContainer, match=message) as caught:
        walked(path)
    assert len(str(caught.value)) < 2000
    assert len(str(caught.value).splitlines()) == 1


# Tar


def pax(records: bytes, name: str = "a/1.jpg") -> bytes:
    """An archive of one image with a pax header of these records."""
    head = tarfile.TarInfo("PaxHeader")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    header = head.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    return header + tar_of([(name, IMAGE)], tarfile.USTAR_FORMAT)


def record(key: str, value: bytes) -> bytes:
    for length in range(len(key) + len(value), len(key) + len(value) + 20):
        text = b"%d %b=%b\n" % (length, key.encode(), value)
        if len(text) == length:
            return text
    raise AssertionError


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (b"", "is a pax header with the size b'', which is no number of bytes; write the archive"),
        (b"9" * 5000, "is a pax header with the size b'99999.*, which is no number of bytes"),
        (b"9" * 18, "begins a member of 9{18} bytes, but the archive ends at .* it is cut off"),
        (b"-1", "is a pax header with the size b'-1', which is no number"),
        (b"1_0", "is a pax header with the size b'1_0', which is no number"),
        (b" 7", "is a pax header with the size b' 7', which is no number"),
    ],
)
def test_a_size_in_a_pax_header_that_is_none(tmp_path, size, message):
    refused(write(tmp_path / "x.tar", pax(record("size", size))), message)


@pytest.mark.parametrize(
    "records",
    [b"9" * 5000 + b" path=x\n", b"5 =\n", b"0 a=\n", b"12 path=a\n", b"\xff", b"-3 a=\n"],
)
def test_a_pax_header_that_cannot_be_read(tmp_path, records):
    refused(write(tmp_path / "x.tar", pax(records)), "at byte 512 is a pax header that cannot be")


def test_many_records_in_a_pax_header_are_read_once(tmp_path):
    """Copying the rest behind each of them took time by its square."""
    records = b"5 a=\n" * 800_000
    assert len(walked(write(tmp_path / "x.tar", pax(records)))) == 1


def test_a_header_larger_than_a_path_can_be(tmp_path):
    path = write(tmp_path / "x.tar", pax(record("comment", bytes(5 << 20))))
    refused(path, "at byte 0 begins a header of .* bytes, where paths and sizes take less than 4")


def test_a_path_that_no_file_can_have(tmp_path):
    path = write(tmp_path / "x.tar", pax(record("path", b"a" * 70_000 + b".jpg")))
    refused(path, "begins a member whose path of 70004 bytes no file can have")
    path = write(tmp_path / "x.tar", pax(record("path", b"a\0b/1.jpg")))
    refused(path, "begins a member whose path of 9 bytes no file can have")


def test_folders_1200_deep_are_a_class_and_a_folder_is_no_image(tmp_path):
    deep = "d/" * 1200 + "x.jpg"
    (entry,) = walked(write(tmp_path / "x.tar", tar_of([(deep, IMAGE)])))
    assert (entry.label, entry.name) == (b"d", b"x.jpg")
    folder = tarfile.TarInfo("a/x.jpg")
    folder.type = tarfile.DIRTYPE
    content = folder.tobuf() + tar_of([("a/1.jpg", IMAGE)])
    assert [one.name for one in walked(write(tmp_path / "y.tar", content))] == [b"1.jpg"]


def test_archives_1200_deep(tmp_path):
    inner = bytes(1024)
    for _ in range(1200):
        head = tarfile.TarInfo("a.tar")
        head.size = len(inner)
        inner = head.tobuf() + inner + bytes(1024)
    path = write(tmp_path / "x.tar", inner)
    refused(path, "a.tar is an archive that lies in more than 4 others; unpack the outer ones")


@pytest.mark.parametrize(
    ("kind", "words"),
    [(tarfile.FIFOTYPE, "a FIFO"), (tarfile.CHRTYPE, "a character device")],
)
def test_an_image_in_an_archive_that_is_no_file_is_named_with_its_kind(tmp_path, kind, words):
    head = tarfile.TarInfo("a/1.jpg")
    head.type = kind
    path = write(tmp_path / "x.tar", head.tobuf() + bytes(1024))
    refused(path, f"the image a/1.jpg is {words}, not a file; write the archive again without it")


# Sidecars

JSON = {
    "brackets": (b"[" * 200_000, r"1.json is no JSON \("),
    "brackets in a label": (b'{"label": ' + b"[" * 200_000, r"1.json is no JSON \("),
    "nested as deep as may be": (b'{"label": ' + b"[" * 400 + b"]" * 400 + b"}", "a list of 1 val"),
    "digits": (b'{"label": ' + b"9" * 5000 + b"}", r"1.json is no JSON \(.*digits|holds no label"),
    "4000 digits": (b'{"label": ' + b"9" * 4000 + b"}", "holds no label but a number of over 60"),
    "half a pair": (b'{"label": "\\ud800"}', r"1.json holds no label but '\\ud800'; write a class"),
    "infinity": (b'{"label": Infinity}', "1.json holds no label but inf; write"),
    "a fraction": (b'{"label": 1.9}', "1.json holds no label but 1.9; write"),
    "a name of 2000 letters": (b'{"label": "' + b"x" * 2000 + b'"}', "holds no label but 'xxxx"),
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_holds_no_label(tmp_path, case):
    content, message = JSON[case]
    refused(write(tmp_path / "x.tar", tar_of([("1.json", content), ("1.jpg", IMAGE)])), message)


@pytest.mark.parametrize(("name", "length"), [("1.cls", 1 << 17), ("1.json", 1 << 25)])
def test_a_label_file_larger_than_one_can_be(tmp_path, name, length):
    path = write(tmp_path / "x.tar", tar_of([(name, bytes(length)), ("1.jpg", IMAGE)]))
    refused(path, f"{name} has {length} bytes, a label file has at most .*; write a class name")


def test_a_label_of_5000_digits(tmp_path):
    path = write(tmp_path / "x.tar", tar_of([("1.cls", b"9" * 5000), ("1.jpg", IMAGE)]))
    refused(path, "1.cls holds no label but '9999")


# RecordIO and TFRecord


def test_an_index_of_5000_digits_is_not_used(tmp_path, caplog):
    path = write(tmp_path / "x.rec", recordio_of([image_record(0, IMAGE)]))
    write(tmp_path / "x.idx", b"0 " + b"9" * 5000 + b"\n")
    assert len(walked(path)) == 1
    assert "x.idx is not used: its line 1 is not two numbers" in caplog.text


def test_a_record_in_parts_without_end(tmp_path):
    part = MAGIC + struct.pack("<I", 2 << 29 | 4) + b"abcd"
    first = MAGIC + struct.pack("<I", 1 << 29 | 28) + image_record(0, b"abcd")
    path = write(tmp_path / "x.rec", first + part * 5000)
    refused(path, "at byte 0 begins a record of over .* bytes in 4097 parts: no image")


def test_a_name_in_a_tfrecord_larger_than_one_can_be(tmp_path):
    example = {"image": IMAGE, "label": 1, "image/filename": b"x" * 70_000}
    path = write(tmp_path / "x.tfrecord", tfrecord_of([serialized(example)]))
    refused(path, "is a record whose image/filename has 70000 bytes, which is no name")


# Exclusion lists


class _Set:
    digest = "d" * 64

    def __len__(self) -> int:
        return 3


def excluding(images: str, hash: str = '"' + "d" * 64 + '"', version: str = "1") -> str:
    splits = f'{{"train": {{"data_hash": {hash}, "images": {images}}}}}'
    return f'{{"version": {version}, "splits": {splits}}}'


NO_LIST = "is not an exclusion list of python -m pipeline.prepare verify"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((excluding(f"[0, {one}]"), f"{NO_LIST}: its images of train hold {words}, which is no")
          for one, words in {
              "Infinity": "inf", "NaN": "nan", "1.9": "1.9", "1.0": "1.0", '"2"': "'2'",
              "true": "True", "3": "3", "-1": "-1", "null": "None", "[1]": "a list of 1 values",
              "9" * 4000: "a number of over 60 digits",
          }.items()),
        (excluding("9" * 5000), NO_LIST),
        (excluding('"12"'), NO_LIST),
        (excluding("{}"), NO_LIST),
        (excluding("[]", hash="5"), NO_LIST),
        (excluding("[]", version="true"), NO_LIST),
        (excluding("[]", version="2"), NO_LIST),
        ('{"version": 1, "splits": {"train": {"data_hash": "x", "images": [], "images": [1]}}}',
         NO_LIST),
        ("[" * 200_000, NO_LIST),
        ("[]", NO_LIST),
        ('{"splits": []}', NO_LIST),
    ],
)  # fmt: skip
def test_an_exclusion_list_that_is_none(tmp_path, content, message):
    path = write(tmp_path / "e.json", content.encode())
    with pytest.raises(ValueError, match=f"^data.exclude={path} {message}") as caught:
        read_list(path, "train", _Set())  # type: ignore[arg-type]
    assert type(caught.value) is ValueError


def test_an_exclusion_list_that_is_one(tmp_path):
    path = write(tmp_path / "e.json", excluding("[0, 2]").encode())
    assert read_list(path, "train", _Set()) == [0, 2]  # type: ignore[arg-type]
    assert read_list(path, "val", _Set()) == []  # type: ignore[arg-type]


# CIFAR-10's pickles

MEMO_OF_9_GB = b"\x80\x02}(U\x06labels]r\xff\xff\xff\x1fu."


def doubled(times: int) -> bytes:
    """A dict whose key is a tuple of twice a tuple, and so on: its hash takes 2^times steps."""
    steps = b"".join(b"2\x86" for _ in range(times))
    return b"\x80\x02})" + steps + b"K\x01s."


PICKLES = {
    "a place in the memo far behind": (MEMO_OF_9_GB, "must hold data"),
    "a key that takes for ever": (doubled(60), "has the instruction DUP, which CIFAR-10's files"),
    "bytes without end": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "truncated or no pickle"),
    "a name twice": (pickled({"a": 1})[:-1] + b"(U\x01aK\x01u.", "it has b'a' twice"),
    "a tuple for a key": (b"\x80\x02}()K\x01u.", "has a dict whose key is no name but tuple"),
    "an empty stack": (b"\x80\x02\x85.", "truncated or no pickle"),
    "an instruction to drop": (b"\x80\x02]0}.", "has the instruction POP, which CIFAR-10's files"),
    "lists without end": (b"\x80\x02" + b"]" * 1_100_000 + b".", "takes more than 1000000 steps"),
    "lists in lists": (b"\x80\x02}U\x06labels" + b"]" * 9000 + b"a" * 8999 + b"s.", "must hold da"),
    "another shape": (
        pickle.dumps({"data": np.zeros((3, 5), np.uint8), "labels": [1]}, 4), "some of shape .3, 5"
    ),
    "floats": (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}, 4), "it has none and 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_that_is_no_batch(tmp_path, case):
    content, message = PICKLES[case]
    path = cifar_archives.write(tmp_path, "python") / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} .*{message}") as caught:
        open_cifar(tmp_path, None)
    assert type(caught.value) is ValueError and len(str(caught.value)) < 2000


@pytest.mark.parametrize("protocol", range(2, 5))
def test_pickles_of_python_3_are_read(tmp_path, protocol):
    folder = cifar_archives.write(tmp_path, "python")
    wanted = open_cifar(tmp_path, None)[0].digest
    for path in sorted(folder.iterdir()):
        content = pickle.loads(path.read_bytes(), encoding="latin-1")
        if protocol > 2:  # where bytes are no call
            path.write_bytes(pickle.dumps(content, protocol))
    assert open_cifar(tmp_path, None)[0].digest == wanted


def test_an_archive_that_unpacks_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.cifar._MOST_BYTES", 1 << 20)
    head = tarfile.TarInfo("other")
    head.size = 1 << 24
    archive = gzip.compress(head.tobuf() + bytes(1 << 24) + bytes(1024))
    path = write(tmp_path / "cifar-10-python.tar.gz", archive)
    with pytest.raises(
        ValueError, match=f"{path} is truncated, damaged .* at most 1048576 bytes are"
    ):
        open_cifar(tmp_path, None)
    path.write_bytes(gzip.compress(tar_of([("x", b"")]) + bytes(1 << 24)))
    with pytest.raises(ValueError, match=f"{path} is truncated, .* at most 1048576 bytes are unp"):
        open_cifar(tmp_path, None)


def test_headers_of_headers_are_followed_without_recursion(tmp_path):
    """Python's tarfile follows 1,200 of them by recursion, and raises RecursionError."""
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = b"L", 512
    chain = (long_name.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511)) * 1200
    path = write(tmp_path / "cifar-10-python.tar.gz", gzip.compress(chain + tar_of([])))
    with pytest.raises(ValueError, match=f"{path} holds neither cifar-10-batches-bin nor"):
        open_cifar(tmp_path, None)
    with pytest.raises(ConfigError, match=f"--devkit {path} is no ImageNet development kit"):
        read_devkit(path)


def test_json_of_an_exclusion_list_is_what_verify_writes(tmp_path):
    written = {"version": 1, "splits": {"train": {"data_hash": _Set.digest, "images": [1]}}}
    path = write(tmp_path / "e.json", json.dumps(written, indent=2).encode())
    assert read_list(path, "train", _Set()) == [1]  # type: ignore[arg-type]
