"""A split opened by each rank for itself: those of a machine scan it once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from jobs import copy_data

from pipeline.config import DataConfig
from pipeline.data.index import manifest
from pipeline.data.opening import open_split


def test_ranks_of_a_machine_scan_once(small_data, tmp_path, monkeypatch):
    root = copy_data(small_data, tmp_path / "data")
    scans, other, scan = [], threading.Event(), manifest.scan

    def slow(tree, progress):
        scans.append(tree.directory)
        if len(scans) == 2:
            other.set()
        other.wait(1.0)  # in which another rank that did not wait would come here
        return scan(tree, progress)

    monkeypatch.setattr(manifest, "scan", slow)
    data = DataConfig(root=str(root))
    with ThreadPoolExecutor(2) as ranks:
        found = list(ranks.map(lambda _: open_split(data, "train"), range(2)))
    assert [path.name for path in scans] == ["train"]
    assert len({images.digest for images, _ in found}) == 1


def test_a_folder_that_takes_no_lock_is_opened_all_the_same(small_data, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr("pipeline.data.opening.locked", refuse)
    images, _ = open_split(DataConfig(root=str(small_data)), "train")
    assert len(images) == 50
