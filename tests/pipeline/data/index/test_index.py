"""`prepare index`: what it counts, and a manifest made anew on demand."""

from __future__ import annotations

import pytest
from container_writers import draw_images, packed, recordio, write_folders

from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare.index import index, run
from pipeline.prepare.options import IndexOptions


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        write_folders(tmp_path / "data" / split, draw_images(4))
    return tmp_path / "data"


def test_index_counts_both_splits_and_finds_them_again(tmp_path, capsys):
    packed(tmp_path / "train", draw_images(9))
    recordio(tmp_path / "val", draw_images(1))
    made = index(tmp_path)
    assert [(one.split, one.images, one.classes, one.scanned) for one in made] == [
        ("train", 9, 2, True),
        ("val", 1, 1, True),
    ]
    assert str(made[0]).startswith("train: 9 images of 2 classes, 0.00 GB, hash ")
    assert [one.scanned for one in index(tmp_path)] == [False, False]
    assert made[0].digest == open_manifest(tmp_path, "train").digest
    assert capsys.readouterr().err == ""  # a bar needs a terminal


def test_a_file_replaced_in_place_can_be_used_after_indexing_again(root, capsys):
    before = open_manifest(root, "train")
    path = before.path(1)
    path.write_bytes(before.read(2).tobytes() + b"other")
    run(IndexOptions(root))
    assert "train: 4 images of 2 classes" in capsys.readouterr().out
    with pytest.raises(BadImage, match="pipeline.prepare index --again makes the manifest anew"):
        open_manifest(root, "train").read(1)
    run(IndexOptions(root, again=True))
    assert capsys.readouterr().out.count("scanned in") == 2
    after = open_manifest(root, "train")
    assert after.read(1).tobytes() == path.read_bytes()
    assert after.digest != before.digest
