"""RecordIO files: bytes by hand, labels, and what damaged records get."""

import struct
from pathlib import Path

import pytest
from container_writers import MAGIC, draw_images, image_record, recordio_record, write_recordio

from pipeline.data.index import recordio
from pipeline.data.index.manifest import open_manifest
from pipeline.data.index.window import BadContainer, Entry, opened

IMAGE = draw_images(1)[0][2]


def entries_of(path: Path) -> list[Entry]:
    with opened(path) as window:
        return recordio.walk(window)


def test_a_file_written_by_hand(tmp_path):
    """Magic number, length, flag, label 3.0, id 11, id2 0, six bytes, two of padding; twice."""
    head = bytes.fromhex("0a23d7ce1e00000000000000000040400b00000000000000" + "00" * 8)
    (tmp_path / "x.rec").write_bytes((head + b"abcdef\0\0") * 2)
    assert entries_of(tmp_path / "x.rec") == [
        Entry(3, b"x.rec#00000000", 32, 6, 0, 0),
        Entry(3, b"x.rec#00000001", 72, 6, 0, 0),
    ]


def test_an_image_cut_at_the_magic_number_by_hand(tmp_path):
    """24 + 4 bytes, the magic number, 3 bytes: in the file a length word stands behind it."""
    header = struct.pack("<IfQQ", 0, 2.0, 0, 0)
    content = MAGIC + struct.pack("<I", 1 << 29 | 28) + header + b"abcd"
    content += MAGIC + struct.pack("<I", 3 << 29 | 3) + b"efg" + b"\0"
    assert content == recordio_record(header + b"abcd" + MAGIC + b"efg")
    (tmp_path / "x.rec").write_bytes(content * 2)
    first, second = entries_of(tmp_path / "x.rec")
    assert first == Entry(2, b"x.rec#00000000", 32, 11, 0, 0, gaps=(8,))
    assert second.offset == len(content) + 32


def test_dalis_own_reader_finds_the_same_images_and_labels(tmp_path):
    from nvidia.dali import fn, pipeline_def

    cut = IMAGE + b"\0" * (-(len(IMAGE) + 24) % 4) + MAGIC + b"tail" + MAGIC * 2 + b"end"
    written = [image_record(label, [IMAGE, cut][label % 2], label) for label in range(6)]
    path, offset, listed = tmp_path / "x.rec", 0, ""
    write_recordio(path, written)
    for number, record in enumerate(written):
        listed += f"{number}\t{offset}\n"
        offset += len(recordio_record(record))
    (tmp_path / "x.idx").write_text(listed)

    @pipeline_def(batch_size=6, num_threads=1, device_id=None)
    def graph():
        images, labels = fn.readers.mxnet(path=[str(path)], index_path=[str(tmp_path / "x.idx")])
        return images, labels

    pipe = graph()
    pipe.build()
    images, labels = pipe.run()
    (tmp_path / "train").mkdir()
    path.rename(tmp_path / "train" / "x.rec")
    (tmp_path / "classes.txt").write_text("0\n1\n2\n3\n4\n5\n")
    manifest = open_manifest(tmp_path, "train", tmp_path)
    assert len(manifest) == 6
    for number in range(6):
        assert manifest.read(number).tobytes() == bytes(images.at(number))
        assert manifest.labels[number] == labels.at(number)[0]


def test_one_label_may_stand_behind_the_header(tmp_path):
    write_recordio(tmp_path / "x.rec", [image_record(6, IMAGE, vector=True)])
    (entry,) = entries_of(tmp_path / "x.rec")
    assert (entry.label, entry.length, entry.width, entry.height) == (6, len(IMAGE), 20, 40)


REFUSED = {
    "half a label": (image_record(1.5, IMAGE), "is a record with label 1.5; write the file"),
    "negative": (image_record(-1, IMAGE), "is a record with label -1.0; write the file"),
    "not a number": (image_record(float("nan"), IMAGE), "is a record with label nan; write"),
    "infinite": (image_record(float("inf"), IMAGE), "is a record with label inf; write"),
    "several": (struct.pack("<IfQQ", 5, 0, 0, 0) + IMAGE, "is a record with 5 labels; write"),
    "short": (b"abc", "is a record without the image header of im2rec; copy"),
    "label missing": (struct.pack("<IfQQ", 1, 0, 0, 0), "is a record without the image header"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_record_without_one_whole_label_is_an_error(tmp_path, case):
    record, message = REFUSED[case]
    good = image_record(0, IMAGE)
    write_recordio(tmp_path / "x.rec", [good, record])
    begin = len(recordio_record(good)) + 8
    with pytest.raises(BadContainer) as caught:
        entries_of(tmp_path / "x.rec")
    assert f"x.rec cannot be used: at byte {begin} {message}" in str(caught.value)


def test_names_and_classes_come_from_the_list_beside_the_file(tmp_path):
    write_recordio(tmp_path / "x.rec", [image_record(k % 2, IMAGE, 10 - k) for k in range(3)])
    listed = "10\t0\ttrain/Z é/nom à espaces.JPEG\n9\t1.0\ta/2.JPEG\n8\t0\tZ é/3.JPEG\n"
    (tmp_path / "x.lst").write_text(listed)
    found = [(entry.label, entry.name.decode()) for entry in entries_of(tmp_path / "x.rec")]
    first = ("Z é".encode(), "nom à espaces.JPEG")
    assert found == [first, (b"a", "2.JPEG"), ("Z é".encode(), "3.JPEG")]
    (tmp_path / "x.lst").write_text("10\t0\t1.JPEG\n9\t1\t2.JPEG\n8\t0\t3.JPEG\n")
    found = [(entry.label, entry.name.decode()) for entry in entries_of(tmp_path / "x.rec")]
    assert found == [(0, "1.JPEG"), (1, "2.JPEG"), (0, "3.JPEG")]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("10\t0\tb/1.JPEG\n9\t1\tb/2.JPEG\n8\t0\tb/3.JPEG\n", "has b'b/2.JPEG', against images"),
        ("10\t0\tb/1.JPEG\n9\t1\ta/2.JPEG\n8\t0\ta/3.JPEG\n", "has b'a/3.JPEG', against images"),
        ("10\t0\tb/1.JPEG\n8\t0\tb/3.JPEG\n", "is an image of id 9, not in .*x.lst; put the"),
        ("10\t0\tb/1.JPEG\nten 0 b/2.JPEG\n", "line 2 of .*x.lst is not id, label and path"),
    ],
)
def test_a_list_of_another_file_is_an_error(tmp_path, listed, message):
    write_recordio(tmp_path / "x.rec", [image_record(k % 2, IMAGE, 10 - k) for k in range(3)])
    (tmp_path / "x.lst").write_text(listed)
    with pytest.raises(BadContainer, match=message):
        entries_of(tmp_path / "x.rec")


def test_a_changed_list_is_seen(tmp_path):
    write_recordio(tmp_path / "train" / "x.rec", [image_record(0, IMAGE)])
    (tmp_path / "train" / "x.lst").write_text("0\t0\ta/1.JPEG\n")
    assert open_manifest(tmp_path, "train", tmp_path).classes == ["a"]
    (tmp_path / "train" / "x.lst").write_text("0\t0\tbcd/1.JPEG\n")
    assert open_manifest(tmp_path, "train", tmp_path).classes == ["bcd"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([0, 2], "is part 2 of a record where"),
        ([0, 3], "is part 3 of a record where"),
        ([1, 0], "is part 0 of a record where"),
        ([1, 2, 1], "is part 1 of a record where"),
    ],
)
def test_parts_out_of_order_are_an_error(tmp_path, flags, message):
    part = image_record(0, b"abcd")
    content = b"".join(MAGIC + struct.pack("<I", f << 29 | len(part)) + part for f in flags)
    (tmp_path / "x.rec").write_bytes(content)
    where = (len(flags) - 1) * (len(part) + 8)
    with pytest.raises(BadContainer, match=f"at byte {where} {message}"):
        entries_of(tmp_path / "x.rec")


def test_a_last_part_that_is_missing_is_an_error(tmp_path):
    part = image_record(0, b"abcd")
    (tmp_path / "x.rec").write_bytes(MAGIC + struct.pack("<I", 1 << 29 | len(part)) + part)
    with pytest.raises(BadContainer, match=f"at byte {8 + len(part)} .* it is cut off"):
        entries_of(tmp_path / "x.rec")
