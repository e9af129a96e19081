"""Containers cut exactly between two records: what shows it, and what is said."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from container_writers import (
    draw_images,
    image_record,
    recordio,
    recordio_record,
    slim_examples,
    tfrecord,
    write_tar,
    write_tfrecord,
)

from pipeline.data.index.manifest import open_manifest


def tar_with_ends(path: Path) -> list[int]:
    """A tar of 5 images in one class; where each member begins, and where the end mark does."""
    write_tar(path, [(f"a/{i}.jpg", content) for i, (_, _, content) in enumerate(draw_images(5))])
    with tarfile.open(path) as archive:
        begins = [member.offset for member in archive]
        return [*begins, archive.offset]


@pytest.mark.parametrize("members", [0, 1, 4])
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
        assert len(open_manifest(tmp_path, "train")) == 5


def test_the_end_marks_of_the_usual_tools_are_enough(tmp_path):
    """GNU tar fills its last record of 20 blocks, or of one with -b1, and so does tarfile."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(draw_images(1)[0][2])
    for number, options in enumerate((["-b1"], [], ["--format=pax"])):
        (tmp_path / "train").mkdir(exist_ok=True)
        path = tmp_path / "train" / f"{number}.tar"
        subprocess.run(["tar", "-C", tmp_path, *options, "-cf", path, "a"], check=True)
        streamed = io.BytesIO()
        with tarfile.open(fileobj=streamed, mode="w|") as archive:
            archive.add(tmp_path / "a" / "1.jpg", f"{number}/1.jpg")
        (tmp_path / "train" / f"streamed-{number}.tar").write_bytes(streamed.getvalue())
    assert len(open_manifest(tmp_path, "train")) == 6


def write_indexed_rec(folder: Path) -> list[int]:
    """x.rec with 6 images and x.idx as im2rec writes it; where each record begins, and the end."""
    records = [recordio_record(image_record(0, one[2], i)) for i, one in enumerate(draw_images(6))]
    begins = [sum(map(len, records[:i])) for i in range(7)]
    folder.mkdir(parents=True)
    (folder / "x.rec").write_bytes(b"".join(records))
    (folder / "x.idx").write_text("".join(f"{i}\t{at}\n" for i, at in enumerate(begins[:-1])))
    (folder / "classes.txt").write_text("a\n")
    return begins


def write_indexed_tfrecord(folder: Path) -> list[int]:
    """The same as TFRecord, with the index of DALI's tfrecord2idx: offset and bytes."""
    path = folder / "train-00000-of-00001"
    write_tfrecord(path, slim_examples(draw_images(6, ("a",)), None))
    content, begins = path.read_bytes(), [0]
    while begins[-1] < len(content):
        begins.append(begins[-1] + 16 + struct.unpack_from("<Q", content, begins[-1])[0])
    lines = [f"{at} {end - at}\n" for at, end in zip(begins, begins[1:], strict=False)]
    (folder / "train-00000-of-00001.idx").write_text("".join(lines))
    return begins


INDEXED = [(write_indexed_rec, "x.rec"), (write_indexed_tfrecord, "train-00000-of-00001")]


@pytest.mark.parametrize(("write", "name"), INDEXED)
def test_a_cut_between_records_shows_by_the_index_beside_the_file(tmp_path, write, name):
    begins = write(tmp_path / "train")
    path = tmp_path / "train" / name
    assert len(open_manifest(tmp_path, "train")) == 6
    os.truncate(path, begins[4])
    wanted = rf"at byte {begins[4]} the file ends, but .*\.idx has 2 of its 6 records from there on"
    with pytest.raises(ValueError, match=wanted) as caught:
        open_manifest(tmp_path, "train")
    assert f"the container {path} cannot be used" in str(caught.value)


@pytest.mark.parametrize(("write", "name"), INDEXED)
def test_an_index_is_not_needed_and_another_kind_of_file_is_none(tmp_path, write, name, caplog):
    write(tmp_path / "train")
    (index,) = (tmp_path / "train").glob("*.idx")
    index.write_text("v1.2 6\nabout other things\n")
    assert len(open_manifest(tmp_path, "train")) == 6
    assert f"the index {index} is not used: its line 1 is not two numbers" in caplog.text
    index.unlink()
    caplog.clear()
    assert len(open_manifest(tmp_path, "train", again=True)) == 6
    assert not caplog.records


@pytest.mark.parametrize(("write", "name"), INDEXED)
def test_fewer_images_than_an_earlier_manifest_knew_are_told(tmp_path, write, name, caplog):
    begins = write(tmp_path / "train")
    (index,) = (tmp_path / "train").glob("*.idx")
    index.unlink()
    open_manifest(tmp_path, "train")
    os.truncate(tmp_path / "train" / name, begins[4])
    assert len(open_manifest(tmp_path, "train")) == 4
    assert f"held when it was indexed last hold fewer images now: {name} (4 of 6); " in caplog.text
    caplog.clear()
    open_manifest(tmp_path, "train")
    open_manifest(tmp_path, "train", again=True)
    assert "fewer" not in caplog.text


def test_a_container_that_is_gone_is_told_and_more_images_are_not(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    recordio(tmp_path / "train", draw_images(6))
    open_manifest(tmp_path, "train")
    recordio(tmp_path / "train", draw_images(9))
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
