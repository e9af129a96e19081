"""One fact told twice must be told alike: labels, numbers and names of classes, records."""

from __future__ import annotations

import codecs
import logging
import re
import unicodedata
from pathlib import Path

import pytest
from container_writers import (
    draw_images,
    example_class,
    image_record,
    packed,
    recordio_of,
    slim_examples,
    tar_of,
    tfrecord_of,
    walked,
    write,
    write_folders,
)

from pipeline.data.index.manifest import open_manifest
from pipeline.data.index.window import BadContainer

IMAGE = draw_images(1)[0][2]
JPG = ("1.jpg", IMAGE)


def labels_of(path: Path) -> list[bytes | int]:
    return [one.label for one in walked(path)]


# Label files in archives


@pytest.mark.parametrize("swapped", [False, True], ids=["cls first", "json first"])
@pytest.mark.parametrize(
    ("cls", "json", "message"),
    [
        (b"1", b'{"label": 2}', "has the label [12], where 1.(cls|json) has [12]; leave the right"),
        (b"cat", b'{"cls": "dog"}', "has the label b'...', where 1.(cls|json) has b'...'; leave"),
    ],
)
def test_two_label_files_of_an_image_that_differ_are_an_error(
    tmp_path, cls, json, message, swapped
):
    sidecars = [("1.cls", cls), ("1.json", json)]
    members = [*(reversed(sidecars) if swapped else sidecars), JPG]
    with pytest.raises(BadContainer, match=message):
        walked(write(tmp_path / "x.tar", tar_of(members)))


@pytest.mark.parametrize("swapped", [False, True])
def test_two_label_files_that_agree_are_one_whatever_their_order(tmp_path, swapped):
    sidecars = [("1.cls", b"7"), ("1.json", b'{"label": 7, "class": "cat", "note": null}')]
    members = [*(reversed(sidecars) if swapped else sidecars), JPG]
    assert labels_of(write(tmp_path / "x.tar", tar_of(members))) == [7]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.cls", b"1"), ("1.cls", b"1"), JPG], "1.cls comes a second time; write the archive"),
        ([("1.cls", b"1"), JPG, ("./1.cls", b"2")], "1.cls comes a second time; write the archive"),
        ([("1.json", b'{"label": 1, "label": 2}'), JPG], "1.json has the labels 1 and 2; leave"),
        (
            [("2.cls", b"2"), ("2.json", b'{"cls": 3}'), ("2.jpg", IMAGE)],
            "2.json has the label 3, where 2.cls has 2; leave the right one",
        ),
        ([("1.cls", b"-> 2.cls"), JPG], "the label file 1.cls is a link, not a file; write the"),
    ],
)
def test_labels_that_come_twice_or_contradict_are_an_error(tmp_path, members, message):
    with pytest.raises(BadContainer, match=message):
        walked(write(tmp_path / "x.tar", tar_of(members)))


@pytest.mark.parametrize("text", ["10.0", "1e1", "+5", "-0", ".5", "1.", "１０", "a\nb"])
def test_what_looks_like_a_number_and_is_none_is_no_name(tmp_path, text):
    """Sorted as text, "10.0" comes before "2.0"."""
    path = write(tmp_path / "x.tar", tar_of([("1.cls", text.encode()), JPG]))
    with pytest.raises(BadContainer, match="1.cls holds no label but .*; write a class name, or"):
        walked(path)


@pytest.mark.parametrize(
    ("content", "label"),
    [(codecs.BOM_UTF8 + b"7\r\n", 7), (codecs.BOM_UTF8 + b"cat", b"cat"), (b"007", 7)],
)
def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path, content, label):
    assert labels_of(write(tmp_path / "x.tar", tar_of([("1.cls", content), JPG]))) == [label]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_label_that_is_no_utf8_is_an_error(tmp_path, coding):
    path = write(tmp_path / "x.tar", tar_of([("1.cls", "7".encode(coding)), JPG]))
    with pytest.raises(BadContainer, match="1.cls is not plain text, perhaps UTF-16; save it as"):
        walked(path)


# Lists of classes


def numbered(split: Path, *numbers: int) -> None:
    records = [image_record(number, IMAGE, i) for i, number in enumerate(numbers)]
    write(split / "x.rec", recordio_of(records))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b""])
def test_a_class_list_is_read_without_its_mark_whatever_ends_its_lines(tmp_path, end):
    numbered(tmp_path / "train", 0, 1)
    write(tmp_path / "classes.txt", codecs.BOM_UTF8 + b"a" + (end or b"\n") + b"b" + end)
    assert open_manifest(tmp_path, "train").classes == ["a", "b"]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be", "utf-32"])
def test_a_class_list_in_utf16_is_an_error(tmp_path, coding):
    numbered(tmp_path / "train", 0, 1)
    path = write(tmp_path / "classes.txt", "a\nb\n".encode(coding))
    wanted = f"the class list {path} is not plain text, perhaps UTF-16; save it as UTF-8, one name"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path, "train")


BACKGROUND = "begins with b'background', which would be the name of the images of class"


def test_a_class_list_that_begins_with_background_shifts_no_class(tmp_path):
    """1001 names, as TensorFlow's models have them, for labels that count from 1."""
    examples = slim_examples(draw_images(4), {"a": 0, "Z é": 1})
    write(tmp_path / "train" / "x.tfrecord", tfrecord_of(examples))
    path = write(tmp_path / "classes.txt", b"background\na\nb\n")
    with pytest.raises(ValueError, match=f"{path} {BACKGROUND} 1 in .*x.tfrecord, .*remove that"):
        open_manifest(tmp_path, "train")


def test_background_may_be_number_0_where_no_image_has_it(tmp_path, caplog):
    write(tmp_path / "classes.txt", b"background\na\nb\n")
    numbered(tmp_path / "train", 1, 2)
    assert open_manifest(tmp_path, "train").classes == ["a", "b"]
    assert not caplog.records
    numbered(tmp_path / "val", 0, 1)
    with pytest.raises(ValueError, match=f"{BACKGROUND} 0 in .*x.rec"):
        open_manifest(tmp_path, "val")


def test_a_class_list_that_names_more_than_there_are_is_warned_of(tmp_path, caplog):
    numbered(tmp_path / "train", 0, 1)
    write(tmp_path / "classes.txt", b"other\na\nb\n")
    open_manifest(tmp_path, "train")
    said = "names 3 classes, the largest number in .* is 1 .from 0.: the last 1 have no images"
    (record,) = caplog.records
    assert re.search(said, record.getMessage())


def test_two_class_lists_that_differ_are_an_error(tmp_path):
    numbered(tmp_path / "train", 0, 1)
    own = write(tmp_path / "train" / "classes.txt", b"a\nb\n")
    other = write(tmp_path / "classes.txt", b"a\nc\n")
    wanted = f"{own} and {other} name different classes: number 1 is b'b' and b'c'; remove the"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path, "train")
    other.write_bytes(b"a\nb\n")  # and is seen to be another
    assert open_manifest(tmp_path, "train").classes == ["a", "b"]


def test_a_list_that_contradicts_names_in_the_images_is_an_error(tmp_path):
    write(tmp_path / "train" / "x.tfrecord", tfrecord_of(slim_examples(draw_images(4), None)))
    path = write(tmp_path / "classes.txt", "none\na\nZ é\n".encode())
    wanted = f"{path} contradicts 2 classes .*: b'a' has number 0 in the images and 1 in the list"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path, "train")
    path.write_text("goldfish\nsharks\n")  # of another vocabulary: not asked for
    assert open_manifest(tmp_path, "train").classes == ["Z é", "a"]


def test_two_containers_that_number_classes_otherwise_are_an_error(tmp_path):
    for number, (first, second) in enumerate([("a", "b"), ("b", "a")]):
        lines = f"0\t0\t{first}/1.jpg\n1\t1\t{second}/2.jpg\n"
        write(tmp_path / "train" / f"{number}.lst", lines.encode())
        records = recordio_of([image_record(0, IMAGE, 0), image_record(1, IMAGE, 1)])
        write(tmp_path / "train" / f"{number}.rec", records)
    with pytest.raises(ValueError, match="1.rec contradicts the containers before it: class numb"):
        open_manifest(tmp_path, "train")


# Lists and indexes of RecordIO and TFRecord

THREE = recordio_of(image_record(k % 2, IMAGE, 10 - k) for k in range(3))
LISTED = "10\t0\ta/1.JPEG\n9\t1\tb/2.JPEG\n8\t0\ta/3.JPEG\n"


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (LISTED + "9\t1\tb/4.JPEG\n", "lines 2 and 4 of .*x.lst have the same id 9, b'b/2.JPEG' a"),
        (LISTED.replace("9\t1", "9\t0"), "is an image of id 9 with label 1, where line 2 of .* 0;"),
        (LISTED.replace("9\t1", "9\t1.5"), "with label 1, where line 2 of .*x.lst has 1.5; put"),
        (LISTED.replace("9\t1", "9\tb"), "line 2 of .*x.lst is not id, label and path with tabs"),
        (LISTED.replace("9\t1", "9"), "line 2 of .*x.lst is not id, label and path with tabs"),
        (LISTED.replace("9\t1", "9\tb\t1"), "line 2 of .*x.lst is not id, label and path with"),
        (LISTED.replace("9\t", "9" * 5000 + "\t"), "line 2 of .*x.lst is not id, label and path"),
    ],
)
def test_a_list_whose_labels_or_ids_contradict_is_an_error(tmp_path, listed, message):
    path = write(tmp_path / "x.rec", THREE)
    write(tmp_path / "x.lst", listed.encode())
    with pytest.raises(BadContainer, match=message):
        walked(path)


def test_a_record_whose_id_another_one_has_is_an_error(tmp_path):
    records = recordio_of(image_record(0, IMAGE, 3) for _ in range(2))
    path = write(tmp_path / "x.rec", records)
    write(tmp_path / "x.lst", b"3\t0\ta/1.JPEG\n")
    with pytest.raises(BadContainer, match="is a second image of id 3, which is one in .*x.lst"):
        walked(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0\t0\n1\t7\n", "at byte 7 no record begins, where .*x.idx has one; copy it again"),
        ("0\t0\n", r"begins one of 3 records, of which .*x.idx has 1; write x.idx again, or remov"),
    ],
)
def test_an_index_of_other_records_is_an_error(tmp_path, lines, message):
    path = write(tmp_path / "x.rec", THREE)
    write(tmp_path / "x.idx", lines.encode())
    with pytest.raises(BadContainer, match=message):
        walked(path)


TWICE = {
    "two labels": ({"label": [1, 2]}, "several label, 1 and 2; write one label in each record"),
    "two synsets": ({"image/class/synset": [b"a", b"b"]}, "more than one image/class/synset; wri"),
    "two images": ({"image": [IMAGE, IMAGE], "label": [1]}, "more than one image/encoded or image"),
    "both images": ({"image/encoded": [IMAGE], "label": [1]}, "more than one image/encoded or im"),
    "two numbers": (
        {"label": [1], "image/class/label": [1]},
        r"whose image/class/label \(class 0 from 0\) and label \(class 1 from 0\) differ; leave",
    ),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_tfrecord_that_tells_something_twice_is_an_error(tmp_path, case):
    features, message = TWICE[case]
    example = {"image": [IMAGE]} | features
    path = write(tmp_path / "x.tfrecord", tfrecord_of([several(example)]))
    with pytest.raises(BadContainer, match=f"is a record (with )?{message}"):
        walked(path)


def test_a_tfrecord_whose_number_and_name_contradict_is_an_error(tmp_path):
    examples = [
        {"image": IMAGE, "image/class/synset": name, "image/class/label": 3}
        for name in (b"a", b"b")
    ]
    path = write(tmp_path / "x.tfrecord", tfrecord_of(examples))
    with pytest.raises(BadContainer, match="that contradicts those before it: class number 2 is b"):
        walked(path)


def several(example: dict[str, list[bytes] | list[int]]) -> bytes:
    """An Example whose features have lists of values."""
    message = example_class()()
    for name, values in example.items():
        kind = "bytes_list" if isinstance(values[0], bytes) else "int64_list"
        getattr(message.features.feature[name], kind).value.extend(values)
    return bytes(message.SerializeToString())


# Names that look the same

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def test_two_classes_that_look_the_same_are_an_error(tmp_path):
    write_folders(tmp_path / "train", [(name, "1.jpg", IMAGE) for name in (NFC, NFD, "e")])
    wanted = r"two classes that look the same, 'e\\u0301' and '\\xe9', .*merge them or rename one"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path, "train")


def test_a_class_of_val_that_looks_like_one_of_training_is_said_to(tmp_path):
    write_folders(tmp_path / "val", [(NFD, "1.jpg", IMAGE)])
    wanted = r"to training, or rename the 1 that look like classes .*Unicode form .*'e\\u0301'$"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(tmp_path, "val", classes=[NFC, "other"])


def test_files_that_look_the_same_are_warned_of(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    packed(tmp_path / "train", [("a", f"{name}.jpg", IMAGE) for name in (NFC, NFD, "e")])
    assert len(open_manifest(tmp_path, "train")) == 3
    assert "1 images in" in caplog.text and "but for its Unicode form" in caplog.text
