"""What a scan does not take is counted and named by reason, at every start."""

from __future__ import annotations

import logging
import os

import pytest
from container_writers import (
    draw_images,
    image_record,
    recordio_of,
    tar_of,
    write,
    write_class_list,
)

from pipeline.data.index.manifest import open_manifest
from pipeline.data.index.passed import Passed

IMAGE = draw_images(1)[0][2]


def told(caplog, root, split="train", **options) -> list[tuple[str, str]]:
    """Level and words of the line, of a scan or of a start from its cache."""
    caplog.clear()
    caplog.set_level(logging.INFO)
    open_manifest(root, split, **options)
    begin = f"{root}/{split}: not used are "
    lines = [(one.levelname, one.getMessage()) for one in caplog.records]
    return [(level, said[len(begin) :]) for level, said in lines if said.startswith(begin)]


def test_what_lies_in_and_beside_class_folders_is_told_by_scan_and_cache(tmp_path, caplog):
    train = tmp_path / "train"
    for name in ("a/1.jpg", "a/2.gif", "a/3.GIF", "a/notes.txt", "a/.b.jpg", "a/sub/4.jpg", "a/x"):
        write(train / name, IMAGE)
    write(train / "stray.png", IMAGE)
    write(train / "readme.md", b"")
    (train / "n02").symlink_to(tmp_path / "nowhere")
    os.mkfifo(train / "pipe")
    said = [
        (
            "WARNING",
            "2 .gif files (the first a/2.gif), 1 folder inside class folders (the first a/sub), "
            "1 image outside class folders and containers (the first stray.png), 1 link to "
            "nothing (the first n02), 1 special file (FIFO, socket, device) (the first pipe), "
            "1 .md file (the first readme.md), 3 others",
        )
    ]
    assert told(caplog, tmp_path) == said
    assert told(caplog, tmp_path) == said
    assert "scanned" not in caplog.text
    (train / "n02").unlink()  # beside the folders: as of this start
    assert "links to nothing" not in told(caplog, tmp_path)[0][1]


def test_notes_and_hidden_names_are_told_without_a_warning(tmp_path, caplog):
    for name in ("a/1.jpg", "a/notes.txt", "a/.DS_Store", ".hidden/x"):
        write(tmp_path / "train" / name, IMAGE)
    words = "2 names that begin with a dot (the first .hidden), 1 .txt file (the first a/notes.txt)"
    assert told(caplog, tmp_path) == [("INFO", words)]
    assert told(caplog, tmp_path) == [("INFO", words)]


def test_a_plain_tree_has_nothing_to_tell(tmp_path, caplog):
    write(tmp_path / "train/a/1.jpg", IMAGE)
    assert told(caplog, tmp_path) == []


def test_what_lies_in_archives_is_told(tmp_path, caplog):
    members = [
        ("a/1.jpg", IMAGE), ("a/2.gif", IMAGE), ("a/notes.txt", b""), ("a/l.txt", b"-> notes.txt"),
    ]  # fmt: skip
    write(tmp_path / "train/x.tar", tar_of(members))
    words = (
        "1 .gif file (the first a/2.gif), 1 .txt file (the first a/notes.txt), 1 link inside "
        "archives (the first a/l.txt)"
    )
    assert told(caplog, tmp_path) == told(caplog, tmp_path) == [("WARNING", words)]


def test_labels_without_an_image_and_lines_without_a_record_are_told(tmp_path, caplog):
    members = [("1.cls", b"a"), ("1.jpg", IMAGE), ("2.cls", b"b"), ("2.gif", IMAGE)]
    write(tmp_path / "train/x.tar", tar_of(members))
    ((level, words),) = told(caplog, tmp_path)
    assert level == "WARNING" and "1 label file without an image (the first 2.cls)" in words
    write(tmp_path / "val/x.rec", recordio_of([image_record(0, IMAGE, 1)]))
    write(tmp_path / "val/x.lst", b"1\t0\ta/1.jpg\n2\t0\ta/2.jpg\n")
    write(tmp_path / "val/other.lst", b"")
    ((level, words),) = told(caplog, tmp_path, "val")
    assert level == "WARNING"
    assert "1 line of .lst files without a record (the first a/2.jpg)" in words
    assert "1 .lst file (the first other.lst)" in words  # of no container here


def test_what_belongs_to_containers_is_nothing_passed_over(tmp_path, caplog):
    write(tmp_path / "train/x.rec", recordio_of([image_record(0, IMAGE, 1)]))
    write(tmp_path / "train/x.lst", b"1\t0\ta/1.jpg\n")
    write(tmp_path / "train/x.idx", b"1\t0\n")
    write_class_list(tmp_path / "train")
    assert told(caplog, tmp_path) == []


@pytest.mark.parametrize("name", ["1.jfif", "1.jpe", "1.JFIF"])
def test_jpegs_by_their_other_names_are_taken_and_decode(tmp_path, name, caplog):
    import numpy as np
    import torch

    from pipeline.data.crops import CenterCrop
    from pipeline.data.dali import DecodeSettings, Loader
    from pipeline.data.stream import ValStream

    write(tmp_path / "train/a" / name, IMAGE)
    write(tmp_path / "val/x.tar", tar_of([(f"a/{name}", IMAGE)]))
    settings = DecodeSettings("cpu", torch.device("cpu"), threads=1)
    for split in ("train", "val"):
        manifest = open_manifest(tmp_path, split)
        assert manifest.widths.tolist() == [20]
        loader = Loader(ValStream(manifest, CenterCrop(16, 16)), [np.arange(1)], 1, 1, settings)
        assert next(loader).images.shape == (1, 3, 16, 16)
        loader.close()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/a/b/1.jpg", "train/a/c/1.jpg"], "only 2 folders inside class folders .*a/b"),
        (["train/a/1.gif"], "only 1 .gif file .the first a/1.gif"),
        (["train/1.zip", "train/readme"], "only 1 .zip file .the first 1.zip., 1 other file"),
    ],
)
def test_a_folder_without_images_says_what_lies_there_instead(tmp_path, files, words):
    for name in files:
        write(tmp_path / name, IMAGE)
    with pytest.raises(ValueError, match=rf"/train holds no images \(.*\), {words}.*; lay them"):
        open_manifest(tmp_path, "train")


def test_dangling_class_folders_alone_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01").symlink_to("nowhere")
    with pytest.raises(ValueError, match="holds no images .*, only 1 link to nothing .*n01"):
        open_manifest(tmp_path, "train")


def test_counts_of_several_walks_add_up():
    one, other = Passed(), Passed()
    one.add("x", b"first")
    other.add("x", b"second", 2)
    other.add_file(b"a.verylongextension", b"a.verylongextension")
    one.merge(other)
    assert one.rows() == [("x", 3, "first"), ("other files", 1, "a.verylongextension")]
    assert Passed(one.rows()).rows() == one.rows()
    assert not one.may_be_missed
