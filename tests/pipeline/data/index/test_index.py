"""`prepare index`: a manifest made anew on demand, and what killed calls left is cleared away."""

from __future__ import annotations

import os
import time

import pytest
from container_writers import draw_images, write_folders

from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare.index import run
from pipeline.prepare.options import IndexOptions


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
    for split in ("train", "val"):
        write_folders(tmp_path / "data" / split, draw_images(4))
    return tmp_path / "data"


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


def test_what_a_killed_call_left_is_removed_after_an_hour(root, tmp_path):
    cache = tmp_path / "cache"
    open_manifest(root, "train", cache)
    (kept,) = cache.iterdir()
    old, new = cache / f".partial-0a1b2c3d-{kept.name}", cache / f".partial-4e5f6a7b-{kept.name}"
    other = cache / f".{kept.name}.bak"
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, times=(time.time() - 4000,) * 2)
    open_manifest(root, "train", cache, again=True)
    assert set(cache.iterdir()) == {kept, new, other}
