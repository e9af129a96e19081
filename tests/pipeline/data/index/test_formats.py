"""What each kind of container may hold, by other programs' writers or by hand, and what is refused:
damaged records, images without a sure class, labels that are none."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tarfile

import pytest
from container_writers import (
    MAGIC,
    draw_images,
    image_record,
    recordio_of,
    recordio_record,
    serialized,
    tar_of,
    tfrecord_of,
    walked,
    webdataset_members,
    write,
    write_folders,
)
from tensorboard.summary.writer.record_writer import masked_crc32c

from pipeline.data.index.manifest import open_manifest
from pipeline.data.index.window import BadContainer, Entry

IMAGE = draw_images(1)[0][2]
VERY_LONG = [("ü" * 100, "n" * 200 + ".JPEG", IMAGE)]
LONG_NAMES = {"ustar": [("c" * 80, "n" * 90 + ".JPEG", IMAGE)], "v7": []}
"""What else formats hold that have no room for the very long: ustar in its prefix field."""


def classes_of(*members: tuple[str, bytes], path) -> dict[str, str | int]:
    """The class of each image of a tar archive, by its name."""
    entries = walked(write(path / "x.tar", tar_of(members)))
    return {
        os.fsdecode(one.name): one.label if isinstance(one.label, int) else os.fsdecode(one.label)
        for one in entries
    }


@pytest.mark.parametrize("format", ["gnu", "pax", "oldgnu", "ustar", "v7"])
@pytest.mark.parametrize("prefix", ["", "./", "train/"])
def test_archives_of_gnu_tar(tmp_path, format, prefix):
    images = [*draw_images(9), *LONG_NAMES.get(format, VERY_LONG)]
    write_folders(tmp_path / "f" / "train", images)
    write(tmp_path / "f" / "train" / "a" / "._x.JPEG", b"\0")
    write(tmp_path / "f" / "train" / "a" / "notes.txt", b"about")
    (tmp_path / "t" / "train").mkdir(parents=True)
    archive, folder = tmp_path / "t" / "train" / "x.tar", tmp_path / "f"
    what = {"": sorted({label for label, _, _ in images}), "./": ["."], "train/": ["train"]}[prefix]
    inside = folder if prefix == "train/" else folder / "train"
    command = ["tar", "-c", f"--format={format}", "-f", str(archive), "-C", str(inside), "--"]
    subprocess.run([*command, *what], check=True)
    folders, contained = open_manifest(folder, "train"), open_manifest(tmp_path / "t", "train")
    assert contained.digest == folders.digest
    for image in range(len(folders)):
        assert contained.read(image).tobytes() == folders.read(image).tobytes()


def test_a_size_in_binary_is_read(tmp_path):
    content = bytearray(tar_of([("a/x.JPEG", IMAGE)], tarfile.USTAR_FORMAT))
    content[124:136] = b"\x80" + len(IMAGE).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    assert [one.length for one in walked(write(tmp_path / "x.tar", content))] == [len(IMAGE)]


def test_the_archive_of_archives_is_read_where_it_lies(tmp_path):
    """ILSVRC2012_img_train.tar holds n01440764.tar and so on, whose images lie at their top."""
    outer, wanted = [], []
    for wnid in ("n01440764", "n01443537"):
        images = [(wnid, f"{wnid}_{number}.JPEG", IMAGE + b"%d" % number) for number in range(3)]
        outer.append((f"{wnid}.tar", tar_of((name, content) for _, name, content in images)))
        wanted += images
    archive = tmp_path / "t" / "train" / "ILSVRC2012_img_train.tar"
    write(archive, tar_of(outer, tarfile.GNU_FORMAT))
    write_folders(tmp_path / "f" / "train", wanted)
    contained = open_manifest(tmp_path / "t", "train")
    assert contained.digest == open_manifest(tmp_path / "f", "train").digest
    assert [contained.read(i).tobytes() for i in range(6)] == [content for _, _, content in wanted]


CLASSES = {
    "a label next to the image comes before its folder": (
        [
            ("b/1.jpg", IMAGE), ("b/1.cls", b"7\n"), ("b/2.cls", b"fish "), ("b/2.seg.png", IMAGE),
            ("b/3.json", b'{"cls": "Z \\u00e9"}'), ("b/3.JPEG", IMAGE),
            ("b/4.json", b'{"width": 4, "label": 12}'), ("b/4.png", IMAGE),
        ],
        {"1.jpg": 7, "2.seg.png": "fish", "3.JPEG": "Z é", "4.png": 12},
    ),
    "json about other things": (
        [("b/1.jpg", IMAGE), ("b/1.json", b'{"caption": "a fish"}')], {"1.jpg": "b"},
    ),
    "what is hidden or no image": (
        [
            ("a/x.jpg", IMAGE), ("a/._x.jpg", b"\0"), ("._a/x.jpg", b"\0"), ("readme", b""),
            ("a/l.txt", b"-> readme"),
        ],
        {"x.jpg": "a"},
    ),
    "a dot that says nothing": (
        [("././a/x.jpg", IMAGE), ("a/./y.jpg", IMAGE)], {"x.jpg": "a", "y.jpg": "a"},
    ),
    "names with dots": (
        [("b/1.jpg", IMAGE), ("b/1.seg.png", IMAGE), ("b/about.json", b"{}")],
        {"1.jpg": "b", "1.seg.png": "b"},
    ),
    "the archive's own name, then class folders below another": (
        [("x_b.jpg", IMAGE), ("t/a/y.jpg", IMAGE), ("t/b/z.jpg", IMAGE)],
        {"x_b.jpg": "x", "y.jpg": "a", "z.jpg": "b"},
    ),
    "keys of webdataset end at the first dot": (
        list(webdataset_members([("fish", "1.left.jpg", IMAGE), ("bird", "2.jpg", IMAGE)], None)),
        {"1.left.jpg": "fish", "2.jpg": "bird"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSES)
def test_the_classes_of_images_in_a_tar(tmp_path, case):
    members, wanted = CLASSES[case]
    assert classes_of(*members, path=tmp_path) == wanted


def entry_of(folder, **features: bytes | int) -> Entry:
    """The one image of a TFRecord file; `__` in a feature's name stands for `/`."""
    named = {name.replace("__", "/"): value for name, value in features.items()}
    path = write(folder / "x.tfrecord", tfrecord_of([named]))
    (entry,) = walked(path)
    assert path.read_bytes()[entry.offset :][: entry.length] == IMAGE
    return entry


def test_features_of_tf_slim(tmp_path):
    slim = {"image__encoded": IMAGE, "image__class__label": 1000, "image__filename": b"n1_2.JPEG"}
    found = entry_of(tmp_path, **slim)
    assert (found.label, found.name, found.width, found.height) == (999, b"n1_2.JPEG", 20, 40)
    assert entry_of(tmp_path, **slim, image__class__synset=b"n01440764").label == b"n01440764"
    assert entry_of(tmp_path, **slim, image__class__synset=b"").label == 999


def test_features_of_tensorflow_datasets(tmp_path):
    found = entry_of(tmp_path, image=IMAGE, label=0, file_name=b"some/folder/n1_2.JPEG")
    assert (found.label, found.name) == (0, b"n1_2.JPEG")
    assert entry_of(tmp_path, image=IMAGE, label=0).name == b"x.tfrecord#00000000"


@pytest.mark.parametrize("features", [["first", "image", "label"], ["label", "image", "last"]])
def test_the_order_of_features_and_large_ones_between_do_not_matter(tmp_path, features):
    """A message may hold its map's entries in any order: one Example for each, joined."""
    values = {"image": IMAGE, "label": 5, "first": b"x" * 9000, "last": b"y" * 70_000}
    content = b"".join(serialized({name: values[name]}) for name in features)
    found = walked(write(tmp_path / "x.tfrecord", tfrecord_of([content] * 2)))
    assert [(one.label, one.length) for one in found] == [(5, len(IMAGE))] * 2


def test_numbers_that_are_not_packed_are_read(tmp_path):
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    feature = field(3, b"\x08\xac\x02")  # int64_list { value: 300 }
    label = field(1, field(1, field(1, b"label") + field(2, feature)))
    path = write(tmp_path / "x.tfrecord", tfrecord_of([serialized({"image": IMAGE}) + label]))
    assert [one.label for one in walked(path)] == [300]


def test_recordio_written_by_hand(tmp_path):
    """Magic number, length, flag, label 3.0, id 11, id2 0, six bytes, two of padding; twice."""
    head = bytes.fromhex("0a23d7ce1e00000000000000000040400b00000000000000" + "00" * 8)
    assert walked(write(tmp_path / "x.rec", (head + b"abcdef\0\0") * 2)) == [
        Entry(3, b"x.rec#00000000", 32, 6, 0, 0),
        Entry(3, b"x.rec#00000001", 72, 6, 0, 0),
    ]


def test_an_image_cut_at_the_magic_number_by_hand(tmp_path):
    """24 + 4 bytes, the magic number, 3 bytes: in the file a length word stands behind it."""
    header = struct.pack("<IfQQ", 0, 2.0, 0, 0)
    content = MAGIC + struct.pack("<I", 1 << 29 | 28) + header + b"abcd"
    content += MAGIC + struct.pack("<I", 3 << 29 | 3) + b"efg" + b"\0"
    assert content == recordio_record(header + b"abcd" + MAGIC + b"efg")
    first, second = walked(write(tmp_path / "x.rec", content * 2))
    assert first == Entry(2, b"x.rec#00000000", 32, 11, 0, 0, gaps=(8,))
    assert second.offset == len(content) + 32


def test_dalis_own_reader_of_recordio_finds_the_same_images_and_labels(tmp_path):
    from nvidia.dali import fn, pipeline_def

    cut = IMAGE + b"\0" * (-(len(IMAGE) + 24) % 4) + MAGIC + b"tail" + MAGIC * 2 + b"end"
    records = [image_record(label, [IMAGE, cut][label % 2], label) for label in range(6)]
    path = write(tmp_path / "train" / "x.rec", recordio_of(records))
    begins = [len(recordio_of(records[:number])) for number in range(6)]
    index = write(tmp_path / "x.idx", b"".join(b"%d\t%d\n" % pair for pair in enumerate(begins)))

    @pipeline_def(batch_size=6, num_threads=1, device_id=None)
    def graph():
        return tuple(fn.readers.mxnet(path=[str(path)], index_path=[str(index)]))

    pipe = graph()
    pipe.build()
    images, labels = pipe.run()
    write(tmp_path / "classes.txt", b"0\n1\n2\n3\n4\n5\n")
    manifest = open_manifest(tmp_path, "train")
    assert len(manifest) == 6
    for number in range(6):
        assert manifest.read(number).tobytes() == bytes(images.at(number))
        assert manifest.labels[number] == labels.at(number)[0]


def test_the_label_of_recordio_may_stand_behind_the_header(tmp_path):
    (entry,) = walked(write(tmp_path / "x.rec", recordio_of([image_record(6, IMAGE, vector=True)])))
    assert (entry.label, entry.length, entry.width, entry.height) == (6, len(IMAGE), 20, 40)


THREE = recordio_of(image_record(k % 2, IMAGE, 10 - k) for k in range(3))


def test_names_and_classes_of_recordio_come_from_the_list_next_to_the_file(tmp_path):
    path, listed = write(tmp_path / "x.rec", THREE), tmp_path / "x.lst"
    listed.write_text("10\t0\ttrain/Z é/nom à espaces.JPEG\n9\t1.0\ta/2.JPEG\n8\t0\tZ é/3.JPEG\n")
    found = [(one.label, one.name.decode()) for one in walked(path)]
    first = ("Z é".encode(), "nom à espaces.JPEG")
    assert found == [first, (b"a", "2.JPEG"), ("Z é".encode(), "3.JPEG")]
    listed.write_text("10\t0\t1.JPEG\n9\t1\t2.JPEG\n8\t0\t3.JPEG\n")
    found = [(one.label, one.name.decode()) for one in walked(path)]
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
    path = write(tmp_path / "x.rec", THREE)
    write(tmp_path / "x.lst", listed.encode())
    with pytest.raises(BadContainer, match=message):
        walked(path)


def flipped(content: bytes, byte: int) -> bytes:
    return content[:byte] + bytes([content[byte] ^ 16]) + content[byte + 1 :]


def parts(*flags: int) -> bytes:
    """Parts of RecordIO's records, whatever flags they have."""
    return b"".join(MAGIC + struct.pack("<I", flag << 29 | 28) + PART for flag in flags)


def framed(content: bytes) -> bytes:
    """A record by the format's description (tensorflow/core/lib/io/record_writer.h)."""
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]


GOOD, SECOND = ("a/1.jpg", IMAGE), ("a/2.jpg", IMAGE)
EXAMPLE = {"image": IMAGE, "label": 1}
RECORD = framed(serialized(EXAMPLE))
REC = recordio_record(image_record(0, IMAGE))
PART = image_record(0, b"abcd")
MEMBER = 512 + len(IMAGE) + -len(IMAGE) % 512

FLAT = ("1.jpg", IMAGE)
IN_TAR = {
    "at the top": ([FLAT], 0, "the image 1.jpg has no class; write members as <class>"),
    "uneven": (
        [GOOD, ("b/a/2.jpg", IMAGE)],
        MEMBER,
        "the image b/a/2.jpg does not lie two levels below the top, as those before it; write",
    ),
    "twice": ([GOOD, ("./a/1.jpg", IMAGE)], MEMBER, "the image a/1.jpg comes a second time; write"),
    "one label missing": (
        [("1.cls", b"0"), ("1.jpg", IMAGE), ("2.jpg", IMAGE)],
        1024 + MEMBER,
        "the image 2.jpg has no label file next to it; add it",
    ),
    "empty label": (
        [("1.cls", b" "), FLAT],
        512,
        "1.cls holds no label but ''; write a class name",
    ),
    "negative": ([("1.cls", b"-1"), FLAT], 512, "1.cls holds no label but '-1'; write"),
    "two signs": ([("1.cls", b"--5"), FLAT], 512, "1.cls holds no label but '--5'; write"),
    "true": ([("1.json", b'{"label": true}'), FLAT], 512, "1.json holds no label but True; write"),
    "a list": (
        [("1.json", b'{"label": [1]}'), FLAT],
        512,
        "1.json holds no label but a list of 1 values; write",
    ),
    "no json": ([("1.json", b"{"), FLAT], 512, "1.json is no JSON ("),
    "one key": (
        [("1.cls", b"0"), ("1.jpg", IMAGE), ("1.seg.png", IMAGE)],
        1024 + MEMBER,
        "the image 1.seg.png has the key of 1.jpg; leave one image for each key",
    ),
    "above": (
        [GOOD, ("../b/1.jpg", IMAGE)],
        MEMBER,
        "the member ../b/1.jpg has .. in its path; write the archive again from inside the folder",
    ),
    "a link": ([GOOD, ("a/2.jpg", b"-> 1.jpg")], MEMBER, "the image a/2.jpg is a link, not a file"),
    "a hard link": ([GOOD, ("a/2.jpg", b"=> a/1.jpg")], MEMBER, "the image a/2.jpg is a link, not"),
}
IN_TFRECORD = {
    "no image": ({"label": 1}, "is a record without image/encoded or image; only encoded"),
    "a number for an image": ({"image": 3, "label": 1}, "is a record without image/encoded"),
    "no class": ({"image": IMAGE}, "is a record without a class; write the classes as image/"),
    "TF-slim's background": (
        {"image/encoded": IMAGE, "image/class/label": 0},
        "is a record whose image/class/label is 0; write the classes as numbers from 1",
    ),
    "no label": ({"image": IMAGE, "label": -1}, "is a record whose label is -1; write the"),
}
IN_RECORDIO = {
    "half a label": (image_record(1.5, IMAGE), "is a record with label 1.5; write the file"),
    "negative": (image_record(-1, IMAGE), "is a record with label -1.0; write the file"),
    "not a number": (image_record(float("nan"), IMAGE), "is a record with label nan; write"),
    "infinite": (image_record(float("inf"), IMAGE), "is a record with label inf; write"),
    "several": (struct.pack("<IfQQ", 5, 0, 0, 0) + IMAGE, "is a record with 5 labels; write"),
    "short": (b"abc", "is a record without the image header of im2rec; copy"),
    "label missing": (struct.pack("<IfQQ", 1, 0, 0, 0), "is a record without the image header"),
}
ONE, TWO = tar_of([GOOD]), tar_of([GOOD, SECOND])
DAMAGED = {
    "no tar header": ("x.tar", flipped(TWO, MEMBER + 3), MEMBER, "no tar header begins: the file"),
    "cut in an image": (
        "x.tar",
        TWO[: MEMBER + 512 + len(IMAGE) - 1],
        MEMBER,
        f"begins a member of {len(IMAGE)} bytes, but the archive ends at",
    ),
    "joined tars": ("x.tar", ONE + TWO, len(ONE), "something follows the end mark; keep joined"),
    "empty tar": ("x.tar", b"", 0, "the archive stops without tar's end mark: it is cut off"),
    "endless": ("x.tfrecord", framed(b"\xff" * 40), 12, "is a number that does not end: not a tf"),
    "too long": ("x.tfrecord", framed(b"\x0a\xff\xff\xff\x7f"), 12, "is a message whose parts do"),
    "no kind": ("x.tfrecord", framed(b"\x0b\x0c"), 12, "is a message whose parts do not fit: not"),
    "inner": ("x.tfrecord", framed(b"\x0a\x03\x0a\x09abc"), 14, "is a message whose parts do not"),
    "0 then 2": ("x.rec", parts(0, 2), 36, "is part 2 of a record where"),
    "0 then 3": ("x.rec", parts(0, 3), 36, "is part 3 of a record where"),
    "1 then 0": ("x.rec", parts(1, 0), 36, "is part 0 of a record where"),
    "a second 1": ("x.rec", parts(1, 2, 1), 72, "is part 1 of a record where"),
    "no last part": ("x.rec", parts(1), 36, "begins a record's head that would end at"),
    **{
        f"byte {byte} of a record's head": (
            "x.tfrecord",
            flipped(RECORD * 2, len(RECORD) + byte),
            len(RECORD),
            "a record's length does not match its checksum: damaged or no TFRecord",
        )
        for byte in range(12)
    },
}
REFUSED = {
    **{f"tar: {case}": ("x.tar", tar_of(wrong), *rest) for case, (wrong, *rest) in IN_TAR.items()},
    **{
        f"tfrecord: {case}": (
            "x.tfrecord", tfrecord_of([EXAMPLE, wrong]), len(RECORD) + 12, message,
        )
        for case, (wrong, message) in IN_TFRECORD.items()
    },
    **{
        f"recordio: {case}": ("x.rec", REC + recordio_record(wrong), len(REC) + 8, message)
        for case, (wrong, message) in IN_RECORDIO.items()
    },
    **DAMAGED,
}  # fmt: skip
"""What is wrong: the container's name and bytes, the byte and the reason that the error names."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_an_error_with_the_byte(tmp_path, case):
    name, content, byte, message = REFUSED[case]
    wanted = f"the container {tmp_path}/{name} cannot be used: at byte {byte} {message}"
    with pytest.raises(BadContainer, match=f"^{re.escape(wanted)}"):
        walked(write(tmp_path / name, content))


def test_a_sparse_image_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    with open(tmp_path / "a" / "1.jpg", "wb") as file:
        file.truncate(1 << 20)
    for name in ("gnu", "pax"):
        options = ["--sparse", f"--format={name}", "-C", str(tmp_path)]
        subprocess.run(["tar", "-cf", str(tmp_path / "x.tar"), *options, "a"], check=True)
        with pytest.raises(BadContainer, match="is no plain file; .* without --sparse"):
            walked(tmp_path / "x.tar")


def test_an_archive_without_members_is_whole_and_empty(tmp_path):
    for zeros in (1024, 10240):
        assert walked(write(tmp_path / "x.tar", bytes(zeros))) == []
