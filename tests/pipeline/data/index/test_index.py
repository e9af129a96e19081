"""`prepare index`: what it counts, and a manifest rebuilt on demand."""

from __future__ import annotations

import pytest
from container_writers import draw_images, packed, recordio, write_folders

from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare.index import run
from pipeline.prepare.options import IndexOptions


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        write_folders(tmp_path / "data" / split, draw_images(4))
    return tmp_path / "data"


def test_index_counts_both_splits_and_finds_them_again(tmp_path, capsys):
    packed(tmp_path / "train", draw_images(9))
    recordio(tmp_path / "val", draw_images(1))
    run(IndexOptions(tmp_path))
    said = capsys.readouterr()
    train, val = said.out.splitlines()
    known = f"hash {open_manifest(tmp_path, 'train').digest[:12]}, scanned in "
    assert train.startswith(f"train: 9 images of 2 classes, 0.00 GB, {known}")
    assert val.startswith("val: 1 images of 1 classes, ")
    assert said.err == ""  # a bar needs a terminal
    run(IndexOptions(tmp_path))
    assert capsys.readouterr().out.count("up to date, opened in") == 2


def test_a_file_replaced_in_place_can_be_used_after_indexing_again(root, capsys):
    before = open_manifest(root, "train")
    path = before.path(1)
    path.write_bytes(before.read(2).tobytes() + b"other")
    run(IndexOptions(root))
    assert "train: 4 images of 2 classes" in capsys.readouterr().out
    with pytest.raises(BadImage, match="pipeline.prepare index --again indexes the data again"):
        open_manifest(root, "train").read(1)
    run(IndexOptions(root, again=True))
    assert capsys.readouterr().out.count("scanned in") == 2
    after = open_manifest(root, "train")
    assert after.read(1).tobytes() == path.read_bytes()
    assert after.digest != before.digest
