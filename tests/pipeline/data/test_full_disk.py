"""A disk that is full, for real: nothing is lost, the error says so, and the next call goes on.

The disk is a small tmpfs, which only root may mount; where nobody may, limits on a file's size in
the tests of each command stand in for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_writers import draw_images, write_folders
from imagenet_archives import options, small_archives
from small_disk import fill, small_disk

from pipeline.config import ConfigError
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare import files, imagenet, index, stage
from pipeline.prepare.options import IndexOptions, StageOptions

_DISK_BYTES = 2 << 20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a file system of 2 MB, of which no command reserves any."""
    folder = tmp_path / "disk"
    # Else the room is found too small before anything is written.
    monkeypatch.setattr(files, "_RESERVE_BYTES", -(1 << 40))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "user cache"))
    with small_disk(folder, _DISK_BYTES):
        yield folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock", "imagenet.json", "staged.json")
    }


@pytest.mark.parametrize("layout", ["folders", "shards"])
def test_imagenet_goes_on_when_there_is_room_again(tmp_path, disk, layout):
    paths = small_archives(train_per_class=40).write(tmp_path / "archives")
    wanted = options(paths, disk / "out", layout=layout, shard_mb=1, workers=1)
    filler = fill(disk, 120_000)
    with pytest.raises(ConfigError, match="does not fit .No space left on device.: make room"):
        imagenet.run(wanted)
    assert not (disk / "out" / "train").exists(), "half a split has its final name"
    before = {path: path.stat().st_ino for path in (disk / "out").rglob("*.*") if path.is_file()}
    assert len(before) > 1, "nothing had been written"
    filler.unlink()
    imagenet.run(wanted)
    whole = options(paths, tmp_path / "whole", layout=layout, shard_mb=1, workers=1)
    imagenet.run(whole)
    assert contents(disk / "out") == contents(tmp_path / "whole")
    inodes = {path.stat().st_ino for path in (disk / "out").rglob("*.*")}
    assert set(before.values()) <= inodes, "something was written twice"


def test_stage_goes_on_when_there_is_room_again(small_data, tmp_path, disk):
    wanted = StageOptions(small_data, disk / "local", workers=1)
    filler = fill(disk, 100_000)
    with pytest.raises(ConfigError, match="does not fit .No space left on device.: make room"):
        stage.run(wanted)
    before = {path: path.stat().st_ino for path in (disk / "local").rglob("*.JPEG")}
    assert before, "nothing had been copied"
    filler.unlink()
    stage.run(wanted)
    assert {path: path.stat().st_ino for path in before} == before
    assert len(list((disk / "local").rglob("*.JPEG"))) == 80
    digests = [open_manifest(root, "train").digest for root in (small_data, disk / "local")]
    assert digests[0] == digests[1]


def test_index_says_that_the_disk_is_full_and_goes_on(tmp_path, disk):
    root, cache = tmp_path / "data", disk / "cache"
    for split in ("train", "val"):
        write_folders(root / split, draw_images(200))
    wanted = IndexOptions(root, cache_dir=cache)
    index.run(wanted)
    kept = {path: path.read_bytes() for path in cache.iterdir()}
    write_folders(root / "train", draw_images(201, classes=("a", "Z é", "new")))
    filler = fill(disk, 4096)
    wrong = f"manifest of {root}/train cannot be written to {cache} .No space left on device.; set "
    with pytest.raises(ValueError, match=wrong):
        index.run(wanted)
    assert {path: path.read_bytes() for path in cache.iterdir()} == kept
    filler.unlink()
    shutil.rmtree(root / "train" / "new")
    index.run(wanted)
    assert set(cache.iterdir()) == set(kept)
