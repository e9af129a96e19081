"""What cut, compressed, closed, changing and vanishing containers get."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from container_writers import (
    WRITERS,
    draw_images,
    image_record,
    packed,
    recordio,
    recordio_of,
    slim_examples,
    tar_of,
    tfrecord,
    tfrecord_of,
    walked,
    write,
    write_folders,
)

from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.system import files

IMAGES = draw_images(6, ("a",))


def container_of(split: Path) -> Path:
    return next(path for path in split.iterdir() if "classes" not in path.name)


@pytest.mark.parametrize("write_as", WRITERS)
def test_no_images_in_any_container_is_an_error(tmp_path, write_as):
    write_as(tmp_path / "train", [])
    with pytest.raises(ValueError, match=r"/train holds no images .*set data.root"):
        open_manifest(tmp_path, "train")


@pytest.mark.parametrize("write_as", WRITERS)
def test_a_container_that_is_cut_is_an_error_with_the_byte(tmp_path, write_as):
    write_as(tmp_path / "train", draw_images(9))
    path = container_of(tmp_path / "train")
    size = path.stat().st_size
    if path.suffix == ".tar":
        size = len(path.read_bytes().rstrip(b"\0")) + 512  # one block of the end mark may stay
    for length in (size - 600, size // 2, 100, 7):
        os.truncate(path, length)
        with pytest.raises(ValueError, match="at byte [0-9]+ .*is cut off; copy it again") as got:
            open_manifest(tmp_path, "train")
        assert str(path) in str(got.value)
    assert not (tmp_path / ".trainyard").exists()


@pytest.mark.parametrize("write_as", WRITERS)
@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x55" * 4, "at byte 0 .*damaged or no"),
        (b"\x1f\x8b\x08", "gzip, which cannot be read by byte range; unpack that"),
        (b"\xfd7zXZ\0", "xz, which cannot be read by byte range; unpack that"),
        (b"\x28\xb5\x2f\xfd", "Zstandard, which cannot be read by byte range; unpack that"),
    ],
)
def test_a_container_that_begins_otherwise_is_an_error(tmp_path, write_as, start, message):
    write_as(tmp_path / "train", draw_images(9))
    path = container_of(tmp_path / "train")
    path.write_bytes(start + path.read_bytes()[len(start) :])
    with pytest.raises(ValueError, match=f"{path} cannot be used: .*{message}"):
        open_manifest(tmp_path, "train")


@pytest.mark.parametrize("write_as", WRITERS)
def test_a_shard_that_shrinks_while_it_is_indexed_is_an_error(tmp_path, write_as, monkeypatch):
    write_as(tmp_path / "train", draw_images(9))
    path = container_of(tmp_path / "train")
    real = os.pread

    def cutting(*where):
        os.truncate(path, 700)
        return real(*where)

    monkeypatch.setattr(os, "pread", cutting)
    with pytest.raises(ValueError, match="at byte [0-9]+ it was cut off while it was read"):
        walked(path)


@pytest.mark.parametrize("write_as", WRITERS)
def test_a_container_that_changes_after_indexing_has_changed_images(tmp_path, write_as):
    write_as(tmp_path / "train", draw_images(9))
    manifest, gone = open_manifest(tmp_path, "train"), open_manifest(tmp_path, "train")
    for path in (tmp_path / "train").iterdir():
        os.truncate(path, 200)
    for image in range(len(manifest)):
        with pytest.raises(BadImage, match="its container was changed or cut") as caught:
            manifest.read(image)
        assert caught.value.changed and caught.value.path == manifest.path(image)
        assert " at byte " in str(caught.value) and "train/" in str(caught.value)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(BadImage, match="it cannot be read: No such file") as caught:
        gone.read(0)
    assert caught.value.changed


def test_mixed_kinds_are_an_error(tmp_path):
    packed(tmp_path / "train", draw_images(3))
    write_folders(tmp_path / "train", draw_images(3))
    recordio(tmp_path / "train", draw_images(3))
    with pytest.raises(ValueError) as caught:
        open_manifest(tmp_path, "train")
    assert str(caught.value) == (
        f"{tmp_path}/train holds 2 class folders (Z é, a) and 3 tar archives (shard-000000.tar, "
        f"shard-000001.tar, shard-000002.tar) and 3 RecordIO files (train0.rec, train1.rec, "
        f"train2.rec), of which only one kind can be the data set; move the others to another "
        f"folder"
    )


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a b.tar.zst", "a.TAR.XZ"])
def test_a_compressed_archive_is_known_by_its_name(tmp_path, name):
    write(tmp_path / "train" / name, b"")
    with pytest.raises(ValueError, match=f"compressed archives, .*: {name}; uncompress them"):
        open_manifest(tmp_path, "train")


@pytest.mark.parametrize("closed", ["split", "container", "class folder", "image"])
def test_what_may_not_be_read_is_an_error_that_says_so(unprivileged, closed, monkeypatch):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    folder, drop_rights = unprivileged
    (packed if closed in ("split", "container") else write_folders)(folder / "train", IMAGES)
    path = {
        "split": folder / "train",
        "container": folder / "train" / "shard-000001.tar",
        "class folder": folder / "train" / "a",
        "image": folder / "train" / "a" / IMAGES[0][1],
    }[closed]
    path.chmod(0)
    drop_rights()
    wanted = f"{path} cannot be read: Permission denied; give this user the right to read it, or "
    wanted += "set data.root to a copy" if closed == "split" else "copy it again from its source"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(folder, "train", cache_dir=folder)
    assert not list(folder.glob("*.arrow"))


def test_an_old_manifest_that_cannot_be_replaced_is_not_passed_by(unprivileged, monkeypatch):
    folder, drop_rights = unprivileged
    write_folders(folder / "train", IMAGES)
    open_manifest(folder, "train")
    (folder / "user").mkdir()
    (folder / "user").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "user"))
    (folder / ".trainyard").chmod(0o555)
    drop_rights()
    wanted = f"cannot be written to {folder}/.trainyard .Permission denied.; set data.cache_dir"
    with pytest.raises(ValueError, match=wanted):
        open_manifest(folder, "train", again=True)


def test_a_bad_image_in_a_container_is_kept_and_warned_of(tmp_path, caplog):
    images = [*draw_images(2), ("a", "page.jpg", b"<html>"), ("a", "void.jpg", b"")]
    packed(tmp_path / "train", images)
    manifest = open_manifest(tmp_path, "train")
    assert "2 of 4 images in" in caplog.text and "a/page.jpg, a/void.jpg" in caplog.text
    reasons = []
    for image in np.flatnonzero(manifest.widths == 0):
        with pytest.raises(BadImage) as caught:
            manifest.read(image)
        assert not caught.value.changed
        reasons.append(caught.value.reason)
    assert reasons == ["no image header", "the file is empty"]


OPEN_AGAIN_AND_AGAIN = """
import sys
from pathlib import Path
from pipeline.data.index.manifest import open_manifest
while True:
    open_manifest(Path(sys.argv[1]), "train")
    print("made", flush=True)
    (Path(sys.argv[1]) / ".trainyard" / "train.arrow").unlink()
"""


def test_a_kill_while_indexing_leaves_a_whole_manifest_or_none(tmp_path, caplog):
    packed(tmp_path / "train", draw_images(300))
    digest = open_manifest(tmp_path, "train").digest
    for delay_sec in (0.004, 0.015):
        argv = [sys.executable, "-c", OPEN_AGAIN_AND_AGAIN, str(tmp_path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"made\n"
            time.sleep(delay_sec)
            child.kill()
        assert open_manifest(tmp_path, "train").digest == digest
    assert "is not used" not in caplog.text


def tar_with_ends(path: Path) -> list[int]:
    """A tar of 6 images in one class; where each member begins, and where the end mark does."""
    write(path, tar_of([(f"a/{i}.jpg", content) for i, (_, _, content) in enumerate(IMAGES)]))
    with tarfile.open(path) as archive:
        begins = [member.offset for member in archive]
        return [*begins, archive.offset]


@pytest.mark.parametrize("members", [0, 1, 5])
def test_a_tar_cut_between_two_members_is_an_error_with_the_byte(tmp_path, members):
    path = tmp_path / "train" / "x.tar"
    ends = tar_with_ends(path)
    os.truncate(path, ends[members])
    with pytest.raises(ValueError, match=f"at byte {ends[members]} .* without tar's end mark"):
        open_manifest(tmp_path, "train")


def test_a_tar_with_one_block_of_zeros_or_many_is_whole(tmp_path):
    path = tmp_path / "train" / "x.tar"
    end = tar_with_ends(path)[-1]
    for zeros in (512, 1024, 20 * 512, 1 << 20):
        os.truncate(path, end)
        os.truncate(path, end + zeros)
        assert len(open_manifest(tmp_path, "train")) == 6


def test_the_end_marks_of_the_usual_tools_are_enough(tmp_path):
    """GNU tar fills its last record of 20 blocks, or of one with -b1, and so does tarfile."""
    write(tmp_path / "a" / "1.jpg", IMAGES[0][2])
    for number, options in enumerate((["-b1"], [], ["--format=pax"])):
        streamed = io.BytesIO()
        with tarfile.open(fileobj=streamed, mode="w|") as archive:
            archive.add(tmp_path / "a" / "1.jpg", f"{number}/1.jpg")
        write(tmp_path / "train" / f"streamed-{number}.tar", streamed.getvalue())
        path = tmp_path / "train" / f"{number}.tar"
        subprocess.run(["tar", "-C", tmp_path, *options, "-cf", path, "a"], check=True)
    assert len(open_manifest(tmp_path, "train")) == 6


def indexed(split: Path, name: str) -> tuple[Path, list[int]]:
    """A container of 6 images and, next to it, the index of im2rec (key and offset) or of DALI's
    tfrecord2idx (offset and bytes); where each record begins, and the end."""
    if name.endswith(".rec"):
        records = [recordio_of([image_record(0, one[2], i)]) for i, one in enumerate(IMAGES)]
    else:
        records = [tfrecord_of([one]) for one in slim_examples(IMAGES, None)]
    begins = [sum(map(len, records[:i])) for i in range(7)]
    path = write(split / name, b"".join(records))
    if name.endswith(".rec"):
        lines = [f"{key}\t{begin}\n" for key, begin in enumerate(begins[:-1])]
    else:
        lines = [f"{begin} {len(one)}\n" for begin, one in zip(begins, records, strict=False)]
    index = split / (name.removesuffix(".rec") + ".idx")
    write(index, "".join(lines).encode())
    write(split / "classes.txt", b"a\n")
    return path, begins


INDEXED = ["x.rec", "train-00000-of-00001"]


@pytest.mark.parametrize("name", INDEXED)
def test_a_cut_between_records_shows_by_the_index_next_to_the_file(tmp_path, name):
    path, begins = indexed(tmp_path / "train", name)
    assert len(open_manifest(tmp_path, "train")) == 6
    os.truncate(path, begins[4])
    wanted = rf"at byte {begins[4]} the file ends, but .*\.idx has 2 of its 6 records from there on"
    with pytest.raises(ValueError, match=f"the container {path} cannot be used: {wanted}"):
        open_manifest(tmp_path, "train")


@pytest.mark.parametrize("name", INDEXED)
def test_an_index_is_not_needed_and_another_kind_of_file_is_none(tmp_path, name, caplog):
    path, begins = indexed(tmp_path / "train", name)
    (index,) = (tmp_path / "train").glob("*.idx")
    index.write_text("v1.2 6\nabout other things\n")
    assert len(open_manifest(tmp_path, "train")) == 6
    assert f"the index {index} is not used: its line 1 is not two numbers" in caplog.text
    index.unlink()
    caplog.clear()
    assert len(open_manifest(tmp_path, "train", again=True)) == 6
    assert not caplog.records
    # Then only the manifest made before shows that it was cut.
    os.truncate(path, begins[4])
    assert len(open_manifest(tmp_path, "train")) == 4
    assert f"held when it was indexed last hold fewer images now: {name} (4 of 6); " in caplog.text
    caplog.clear()
    open_manifest(tmp_path, "train")
    open_manifest(tmp_path, "train", again=True)
    assert "fewer" not in caplog.text


def test_a_container_that_is_gone_is_told_and_more_images_are_not(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for count in (6, 9):
        recordio(tmp_path / "train", draw_images(count))
        open_manifest(tmp_path, "train")
    assert not caplog.records
    (tmp_path / "train" / "train1.rec").unlink()
    open_manifest(tmp_path, "train")
    assert "1 of the 3 RecordIO files that" in caplog.text and "train1.rec (gone)" in caplog.text


def test_tfrecord_files_that_the_others_count_are_missed(tmp_path, caplog):
    tfrecord(tmp_path / "train", draw_images(6))
    open_manifest(tmp_path, "train")
    assert not caplog.records
    lost = sorted((tmp_path / "train").glob("*-of-*"))[1]
    lost.unlink()
    assert len(open_manifest(tmp_path, "train", tmp_path / "cache")) == 4
    (line,) = [one.getMessage() for one in caplog.records]
    assert f"the names of the others count are missing in {tmp_path}/train: {lost.name}; " in line
