"""Tar archives of tarfile and GNU tar, and where the classes of their images come from."""

import io
import logging
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from container_writers import draw_images, webdataset_members, write_folders, write_tar
from PIL import Image

from pipeline.data.index import tar
from pipeline.data.index.manifest import open_manifest
from pipeline.data.index.window import BadContainer, Entry, opened

LONG_CLASS, LONG_NAME = "ü" * 100, "n" * 200 + ".JPEG"
IMAGE = draw_images(1)[0][2]


def entries_of(path: Path) -> list[Entry]:
    with opened(path) as window:
        return tar.walk(window)


def classes_of(path: Path) -> dict[str, str | int]:
    def text(value: bytes | int) -> str | int:
        return value if isinstance(value, int) else os.fsdecode(value)

    return {os.fsdecode(entry.name): text(entry.label) for entry in entries_of(path)}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_are_those_of_tarfile_in_every_format(tmp_path, format):
    long_class = "c" * 120  # in ustar's prefix field
    images = [*draw_images(5), (long_class, "n" * 90 + ".JPEG", IMAGE)]
    path = tmp_path / "x.tar"
    write_tar(path, ((f"{label}/{name}", content) for label, name, content in images), format)
    with tarfile.open(path) as archive:
        known = [(member.name, member.offset_data, member.size) for member in archive]
    found = [
        (os.fsdecode(entry.label) + "/" + os.fsdecode(entry.name), entry.offset, entry.length)
        for entry in entries_of(path)
        if isinstance(entry.label, bytes)
    ]
    assert found == known


@pytest.mark.parametrize("format", ["gnu", "pax", "oldgnu", "ustar", "v7"])
@pytest.mark.parametrize("prefix", ["", "./", "train/"])
def test_archives_of_gnu_tar(tmp_path, format, prefix):
    short = format in ("ustar", "v7")
    images = [*draw_images(9), *([] if short else [(LONG_CLASS, LONG_NAME, IMAGE)])]
    write_folders(tmp_path / "f" / "train", images)
    (tmp_path / "f" / "train" / "a" / "._x.JPEG").write_bytes(b"\0")
    (tmp_path / "f" / "train" / "a" / "notes.txt").write_text("about")
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
    path = tmp_path / "x.tar"
    write_tar(path, [("a/x.JPEG", IMAGE)], tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + len(IMAGE).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    assert [entry.length for entry in entries_of(path)] == [len(IMAGE)]


def test_the_archive_of_archives_is_read_where_it_lies(tmp_path):
    """ILSVRC2012_img_train.tar holds n01440764.tar and so on, whose images lie at their top."""
    outer, wanted = [], []
    for wnid in ("n01440764", "n01443537"):
        images = [(wnid, f"{wnid}_{number}.JPEG", IMAGE + b"%d" % number) for number in range(3)]
        write_tar(tmp_path / f"{wnid}.tar", ((name, content) for _, name, content in images))
        outer.append((f"{wnid}.tar", (tmp_path / f"{wnid}.tar").read_bytes()))
        wanted += images
    write_tar(tmp_path / "t" / "train" / "ILSVRC2012_img_train.tar", outer, tarfile.GNU_FORMAT)
    write_folders(tmp_path / "f" / "train", wanted)
    contained = open_manifest(tmp_path / "t", "train")
    assert contained.digest == open_manifest(tmp_path / "f", "train").digest
    assert [contained.read(i).tobytes() for i in range(6)] == [content for _, _, content in wanted]


def test_a_label_beside_the_image_comes_before_its_folder(tmp_path):
    members = [
        ("b/1.jpg", IMAGE), ("b/1.cls", b"7\n"), ("b/2.cls", b"fish "), ("b/2.seg.png", IMAGE),
        ("b/3.json", b'{"cls": "Z \\u00e9"}'), ("b/3.JPEG", IMAGE),
        ("b/4.json", b'{"width": 4, "label": 12}'), ("b/4.png", IMAGE),
    ]  # fmt: skip
    write_tar(tmp_path / "x.tar", members)
    wanted = {"1.jpg": 7, "2.seg.png": "fish", "3.JPEG": "Z é", "4.png": 12}
    assert classes_of(tmp_path / "x.tar") == wanted


def test_json_about_other_things_leaves_the_folder_to_say_the_class(tmp_path):
    write_tar(tmp_path / "x.tar", [("b/1.jpg", IMAGE), ("b/1.json", b'{"caption": "a fish"}')])
    assert classes_of(tmp_path / "x.tar") == {"1.jpg": "b"}


def test_what_is_hidden_or_no_image_is_passed_over(tmp_path):
    members = [("a/x.jpg", IMAGE), ("a/._x.jpg", b"\0"), ("._a/x.jpg", b"\0"), ("readme", b"")]
    path = tmp_path / "x.tar"
    write_tar(path, members)
    with tarfile.open(path, "a") as archive:
        for name, kind in (("a/l.txt", tarfile.SYMTYPE), ("a/d.jpg/", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name.rstrip("/") if kind == tarfile.SYMTYPE else "a/d")
            member.type = kind
            archive.addfile(member)
    assert classes_of(path) == {"x.jpg": "a"}


def test_hidden_images_are_counted_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    members = [("a/x.jpg", IMAGE), ("a/._x.jpg", b"\0"), (".git/x.jpg", b"\0"), (".notes", b"")]
    write_tar(tmp_path / "train" / "1.tar", members)
    write_tar(tmp_path / "train" / "2.tar", [("b/._y.jpg", b"\0"), ("b/y.jpg", IMAGE)])
    assert len(open_manifest(tmp_path, "train")) == 2
    assert caplog.text.count("begin with a dot") == 1
    assert f"{tmp_path}/train: 3 images passed over, whose names begin with a dot" in caplog.text


def test_a_dot_in_a_path_that_says_nothing_is_no_hidden_name(tmp_path):
    write_tar(tmp_path / "x.tar", [("././a/x.jpg", IMAGE), ("a/./y.jpg", IMAGE)])
    assert classes_of(tmp_path / "x.tar") == {"x.jpg": "a", "y.jpg": "a"}


def test_names_of_a_class_folder_may_have_dots(tmp_path):
    members = [("b/1.jpg", IMAGE), ("b/1.seg.png", IMAGE), ("b/about.json", b"{}")]
    write_tar(tmp_path / "x.tar", members)
    assert classes_of(tmp_path / "x.tar") == {"1.jpg": "b", "1.seg.png": "b"}


def test_an_image_that_lies_in_two_shards_is_warned_of_once(tmp_path, caplog):
    write_tar(tmp_path / "train" / "1.tar", [("a/x.jpg", IMAGE), ("a/y.jpg", IMAGE)])
    write_tar(tmp_path / "train" / "2.tar", [("a/x.jpg", IMAGE), ("a/y.jpg", IMAGE)])
    write_tar(tmp_path / "train" / "3.tar", [("b/x.jpg", IMAGE)])
    assert len(open_manifest(tmp_path, "train")) == 5
    assert caplog.text.count("the class and name of another") == 1
    assert f"2 images in {tmp_path}/train have the class and name of another" in caplog.text
    assert "the first a/x.jpg: if tar archives hold copies" in caplog.text


REFUSED = {
    "flat": ([("1.jpg", IMAGE)], "the image 1.jpg has no class; write members as <class>/<file>"),
    "uneven": (
        [("a/1.jpg", IMAGE), ("b/a/2.jpg", IMAGE)],
        "the image b/a/2.jpg does not lie two levels below the top, as those before it; write",
    ),
    "twice": (
        [("a/1.jpg", IMAGE), ("./a/1.jpg", IMAGE)],
        "the image a/1.jpg comes a second time; write the archive anew",
    ),
    "one label missing": (
        [("1.jpg", IMAGE), ("1.cls", b"0"), ("2.jpg", IMAGE)],
        "the image 2.jpg has no label file beside it; add it",
    ),
    "empty label": ([("1.jpg", IMAGE), ("1.cls", b" ")], "1.cls' holds no label but ''; write"),
    "negative": ([("1.jpg", IMAGE), ("1.cls", b"-1")], "holds no label but '-1'; write a class"),
    "two signs": ([("1.jpg", IMAGE), ("1.cls", b"--5")], "1.cls' holds no label but '--5'; write"),
    "true": ([("1.json", b'{"label": true}')], "1.json' holds no label but True; write a class"),
    "one key": (
        [("1.cls", b"0"), ("1.jpg", IMAGE), ("1.seg.png", IMAGE)],
        "the images 1.jpg and 1.seg.png have one key; leave one image for each key",
    ),
    "above": (
        [("a/1.jpg", IMAGE), ("../b/1.jpg", IMAGE)],
        "the member ../b/1.jpg has .. in its path; write the archive anew from inside the folder",
    ),
    "list": ([("1.json", b'{"label": [1]}')], r"holds no label but [1]; write a class name"),
    "no json": ([("1.json", b"{")], "1.json' is no JSON ("),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_image_without_a_sure_class_is_an_error(tmp_path, case):
    members, message = REFUSED[case]
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(BadContainer) as caught:
        entries_of(tmp_path / "x.tar")
    assert f"the container {tmp_path}/x.tar cannot be used: at byte " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_an_image_that_is_a_link_is_an_error(tmp_path, kind):
    path = tmp_path / "x.tar"
    write_tar(path, [("a/1.jpg", IMAGE)])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("a/2.jpg")
        link.type, link.linkname = kind, "a/1.jpg"
        archive.addfile(link)
    with pytest.raises(BadContainer, match="2.jpg is a link, not a file; .*--dereference"):
        entries_of(path)


def test_a_sparse_image_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    with open(tmp_path / "a" / "1.jpg", "wb") as file:
        file.truncate(1 << 20)
    for name in ("gnu", "pax"):
        options = ["--sparse", f"--format={name}", "-C", str(tmp_path)]
        subprocess.run(["tar", "-cf", str(tmp_path / "x.tar"), *options, "a"], check=True)
        with pytest.raises(BadContainer, match="is no plain file; .* without --sparse"):
            entries_of(tmp_path / "x.tar")


def test_joined_archives_are_an_error_not_half_a_data_set(tmp_path):
    for name in ("x", "y"):
        write_tar(tmp_path / f"{name}.tar", [(f"a/{name}.jpg", IMAGE)])
    first = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(first + (tmp_path / "y.tar").read_bytes())
    with pytest.raises(BadContainer, match=f"at byte {len(first)} something follows the end mark"):
        entries_of(tmp_path / "x.tar")


def test_a_flipped_bit_in_a_header_is_an_error_with_its_byte(tmp_path):
    write_tar(tmp_path / "x.tar", [("a/1.jpg", IMAGE), ("a/2.jpg", IMAGE)])
    content = bytearray((tmp_path / "x.tar").read_bytes())
    second = 512 + len(IMAGE) + -len(IMAGE) % 512
    content[second + 3] ^= 4
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(BadContainer, match=f"at byte {second} no tar header begins: the file is"):
        entries_of(tmp_path / "x.tar")


def test_a_cut_inside_an_image_names_the_member_that_lacks_its_end(tmp_path):
    write_tar(tmp_path / "x.tar", [("a/1.jpg", IMAGE), ("a/2.jpg", IMAGE)])
    second = 512 + len(IMAGE) + -len(IMAGE) % 512
    os.truncate(tmp_path / "x.tar", second + 512 + len(IMAGE) - 1)
    wanted = f"at byte {second} begins a member of {len(IMAGE)} bytes, but the archive ends at"
    with pytest.raises(BadContainer, match=f"{wanted} .* it is cut off; copy it anew"):
        entries_of(tmp_path / "x.tar")


@pytest.mark.parametrize("content", [b"", b"\0" * 1024, b"\0" * 10240])
def test_an_archive_without_members_needs_its_end_mark(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    if content:
        assert entries_of(tmp_path / "x.tar") == []
    else:
        with pytest.raises(BadContainer, match="at byte 0 the archive stops without tar's end"):
            entries_of(tmp_path / "x.tar")


def test_large_headers_before_the_size_are_read_through(tmp_path):
    """60 kB before the frame, as colour profiles take, and an image of another format."""
    padded = IMAGE[:2] + b"\xff\xe2\xea\x60" + b"\0" * 0xEA5E + IMAGE[2:]
    png = io.BytesIO()
    Image.new("RGB", (31, 17)).save(png, "PNG")
    members = [("a/1.jpg", padded), ("a/2.JPEG", png.getvalue())]
    write_tar(tmp_path / "x.tar", members)
    sizes = [(entry.width, entry.height) for entry in entries_of(tmp_path / "x.tar")]
    assert sizes == [(20, 40), (31, 17)]


def test_webdataset_keys_end_at_the_first_dot(tmp_path):
    images = [("fish", "0001.left.jpg", IMAGE), ("bird", "0002.jpg", IMAGE)]
    write_tar(tmp_path / "x.tar", webdataset_members(images, None))
    assert classes_of(tmp_path / "x.tar") == {"0001.left.jpg": "fish", "0002.jpg": "bird"}
