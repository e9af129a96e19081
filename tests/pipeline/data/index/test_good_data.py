"""Good data of unusual kinds is taken: what nobody needs, or tells the same in other words."""

from __future__ import annotations

import json
import logging
import os
import re
import tarfile

import pytest
from container_writers import (
    draw_images,
    image_record,
    listed_recordio,
    recordio_of,
    slim_examples,
    tar_of,
    tfrecord_of,
    walked,
    webdataset_members,
    write,
    write_folders,
)

from pipeline.data.index.manifest import open_manifest
from pipeline.data.index.window import BadContainer

IMAGES = draw_images(6)
IMAGE = IMAGES[0][2]
JPG = ("1.jpg", IMAGE)


# Lists of classes that have names


def slim(split, images):
    write(split / "x.tfrecord", tfrecord_of(slim_examples(images, None)))


def words(split, images):
    write(split / "x.tar", tar_of(webdataset_members(images, None, "json")))


def doubled(train, root):
    write(root / "classes.txt", b"crane\nmaillot\ncrane\nmaillot\n")
    return "classes.txt names classes twice: b'crane', b'maillot'; write each class once"


def gap(train, root):
    write(train / "classes.txt", b"a\n\nb\n")
    return "train/classes.txt has empty lines"


def utf16(train, root):
    write(root / "classes.txt", "a\nb\n".encode("utf-16"))
    return "classes.txt is not plain text, perhaps UTF-16"


def two(train, root):
    write(train / "classes.txt", "a\nZ é\n".encode())
    write(root / "classes.txt", b"goldfish\nshark\n")
    return "classes.txt name different classes: number 0 is"


def to_nowhere(train, root):
    (root / "classes.txt").symlink_to("nowhere")
    return "classes.txt cannot be read: No such file"


def fifo(train, root):
    os.mkfifo(root / "classes.txt")
    return "classes.txt cannot be read: it is a FIFO"


LISTS = [doubled, gap, utf16, two, to_nowhere, fifo]


@pytest.mark.parametrize("listing", LISTS)
@pytest.mark.parametrize("write_as", [slim, listed_recordio, words])
def test_a_class_list_that_nobody_needs_ends_nothing(tmp_path, caplog, write_as, listing):
    write_folders(tmp_path / "plain" / "train", IMAGES)
    wanted = open_manifest(tmp_path / "plain", "train")
    train = tmp_path / "train"
    write_as(train, IMAGES)
    message = listing(train, tmp_path)
    caplog.clear()
    found = open_manifest(tmp_path, "train")
    assert (found.classes, found.digest) == (wanted.classes, wanted.digest)
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    if write_as is not words:  # whose labels have no numbers that a list could contradict
        (line,) = said
        assert line.startswith(f"classes.txt is not used, as all classes in {train} have names: ")
        assert message in line
    else:
        assert said == []


@pytest.mark.parametrize("listing", LISTS)
def test_a_class_list_that_is_needed_must_be_right(tmp_path, listing):
    write(tmp_path / "train" / "x.rec", recordio_of([image_record(0, IMAGE)]))
    message = listing(tmp_path / "train", tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_manifest(tmp_path, "train")


# Labels in other words


def sidecar(value) -> bytes:
    return json.dumps(value).encode()


CRANES = {
    "in another key": [
        ("1.json", sidecar({"label": 134, "class": "crane"})),
        ("2.json", sidecar({"label": 517, "class": "crane"})),
    ],
    "of another number": [
        ("1.json", sidecar({"label": 134, "class": "crane"})),
        ("2.json", sidecar({"label": 517, "class": 3, "cls": "517"})),
    ],
    "several words": [
        ("1.json", sidecar({"label": 134, "class": "a crane"})),
        ("2.json", sidecar({"class": "a bird", "label": 517})),
        ("3.json", sidecar({"class": "a crane, from behind", "label": 134})),
    ],
    "beside .cls": [
        ("1.cls", b"134"), ("1.json", sidecar({"label": "crane"})),
        ("2.cls", b"517"), ("2.json", sidecar({"label": "crane"})),
    ],
    "before .cls": [
        ("1.json", sidecar({"label": "crane"})), ("1.cls", b"134"),
        ("2.json", sidecar({"label": "crane", "class": 7})), ("2.cls", b"517"),
    ],
    "what is no label": [
        ("1.cls", b"134"), ("1.json", sidecar({"label": 134, "class": None})),
        ("2.cls", b"517"), ("2.json", sidecar({"label": 517, "class": ["crane", 1.5]})),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CRANES)
def test_words_beside_a_label_need_not_be_its_alone(tmp_path, case):
    images = [(name.replace(name.split(".")[1], "jpg"), IMAGE) for name, _ in CRANES[case]]
    members = [*CRANES[case], *dict(images).items()]
    labels = [one.label for one in walked(write(tmp_path / "x.tar", tar_of(members)))]
    assert labels == [134, 517, 134][: len(labels)]


@pytest.mark.parametrize("key", ["label", "cls", "class"])
def test_of_one_json_the_first_key_is_the_label(tmp_path, key):
    keys = ["label", "cls", "class"]
    about = {one: f"{one} word" for one in reversed(keys[keys.index(key) :])}
    path = write(tmp_path / "x.tar", tar_of([("1.json", sidecar(about)), JPG]))
    assert [one.label for one in walked(path)] == [f"{key} word".encode()]
    other = tar_of([("1.json", sidecar(about)), ("1.cls", b"another"), JPG])
    with pytest.raises(BadContainer, match="1.cls has the label b'another', where 1.json has b'"):
        walked(write(tmp_path / "x.tar", other))


# What lies beside class folders in an archive

ABOUT_ALL = {
    "large": (("annotations.json", b"[" + b" " * (18 << 20) + b"]"), ".json file"),
    "no JSON": (("train.json", b'{"id": 1}\n{"id": 2}\n'), ".json file"),
    "no label": (("info.json", b'{"label": [1, 2]}'), ".json file"),
    "about other things": (("a/info.json", b'{"year": 2012}'), ".json file"),
    "UTF-16": (("a/notes.json", "{}".encode("utf-16")), ".json file"),
    "a link": (("latest.json", b"-> info.json"), "link inside archives"),
    "a large label": (("a.cls", bytes(1 << 17)), "label file without an image"),
    "an empty label": (("a/9.cls", b""), "label file without an image"),
}


@pytest.mark.parametrize("case", ABOUT_ALL)
def test_a_file_of_no_image_in_an_archive_is_counted(tmp_path, caplog, case):
    caplog.set_level(logging.INFO)
    beside, reason = ABOUT_ALL[case]
    write(tmp_path / "train" / "x.tar", tar_of([beside, ("a/1.jpg", IMAGE), ("b/2.jpg", IMAGE)]))
    assert open_manifest(tmp_path, "train").classes == ["a", "b"]
    assert f"not used are 1 {reason} (the first {beside[0]})" in caplog.text


def test_a_file_of_no_image_that_comes_twice_is_counted_twice(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    twice = [("info.json", b"{}")] * 2
    write(tmp_path / "train" / "x.tar", tar_of([*twice, ("a/1.jpg", IMAGE)]))
    assert open_manifest(tmp_path, "train").classes == ["a"]
    assert "not used are 2 .json files (the first info.json)" in caplog.text


@pytest.mark.parametrize("name", [".", "./", "a/.", "./././"])
def test_the_root_of_an_archive_is_no_hidden_name(tmp_path, caplog, name):
    caplog.set_level(logging.INFO)
    path = tmp_path / "train" / "x.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo(name)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    begin = path.read_bytes()[:512]
    path.write_bytes(begin + tar_of([("./a/1.jpg", IMAGE)]))
    assert open_manifest(tmp_path, "train").classes == ["a"]
    assert "not used" not in caplog.text


# Lists of RecordIO with several labels


@pytest.mark.parametrize("more", ["2", "0.5\t7", "word"])
def test_a_list_with_several_labels_has_the_first(tmp_path, more):
    """As im2rec writes them, unless it is told to pack all labels: flag 0 and the first."""
    records = [image_record(k % 2, IMAGE, k) for k in range(3)]
    path = write(tmp_path / "x.rec", recordio_of(records))
    lines = [f"{k}\t{k % 2}.000000\t{more}\t{'ab'[k % 2]}/{k}.JPEG\n" for k in range(3)]
    write(tmp_path / "x.lst", "".join(lines).encode())
    assert [(one.label, one.name) for one in walked(path)] == [
        (b"a", b"0.JPEG"), (b"b", b"1.JPEG"), (b"a", b"2.JPEG"),
    ]  # fmt: skip
    write(tmp_path / "x.lst", "".join(lines).replace("1\t1.", "1\t0.").encode())
    with pytest.raises(BadContainer, match="id 1 with label 1, where line 2 of .*x.lst has 0; put"):
        walked(path)


def test_an_index_that_has_a_record_twice_or_in_another_order_is_whole(tmp_path, caplog):
    records = [image_record(0, IMAGE, k) for k in range(3)]
    begins = [len(recordio_of(records[:k])) for k in (2, 0, 1, 0)]
    path = write(tmp_path / "x.rec", recordio_of(records))
    write(tmp_path / "x.idx", "".join(f"{k}\t{at}\n" for k, at in enumerate(begins)).encode())
    assert len(walked(path)) == 3
    assert not caplog.records
