"""Reading from a file system that refuses for a while."""

import logging
import shutil
import socket
import threading

import numpy as np
import pytest
from jobs import copy_data, small_settings, start

from pipeline.data.dali import read_patiently
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import GlobalOrder


def test_a_file_that_comes_back_is_read(small_data, tmp_path, caplog):
    manifest = open_manifest(copy_data(small_data, tmp_path / "data"), "val")
    good, away = manifest.read(3), tmp_path / "away"
    path = manifest.path(3)
    path.rename(away)
    timer = threading.Timer(0.3, away.rename, [path])
    timer.start()
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        assert (read_patiently(manifest, 3) == good).all()
    timer.join()
    assert "it cannot be read: No such file or directory; it is read again in 0.1 s" in caplog.text


def test_a_file_that_stays_away_is_an_error_that_excludes_nothing(small_data, tmp_path):
    manifest = open_manifest(copy_data(small_data, tmp_path / "data"), "val")
    manifest.path(3).unlink()
    with pytest.raises(BadImage, match="it cannot be read") as caught:
        read_patiently(manifest, 3)
    assert caught.value.changed


TRAIN_AND_TELL_OF_SCANS = """
import sys
from pipeline.data.index import manifest
from pipeline.system.failure import run_command
from pipeline.system.launched import launched_rank
from pipeline.train.__main__ import main

def scan(tree, *rest, real=manifest.scan):
    print(f"rank {launched_rank()} scans {tree.directory}", flush=True)
    return real(tree, *rest)

manifest.scan = scan
run_command(main, sys.argv[1:])
"""


def test_a_read_again_names_its_rank_and_what_all_ranks_see_is_said_once(small_data, tmp_path):
    """Rank 1's file system refuses an image that rank 0 has no business with."""
    data = copy_data(small_data, tmp_path / "data")
    shutil.rmtree(sorted((data / "val").iterdir())[0])  # val now has a class less
    manifest = open_manifest(data, "train")
    positions = [p for p in range(len(manifest)) if p % 8 >= 4]  # two ranks, micro-batches of 4
    pixels = manifest.widths.astype(int) * manifest.heights
    images = GlobalOrder(len(manifest), seed=0).images(np.array(positions))
    path = manifest.path(int(min(images, key=lambda image: pixels[image])))  # not in the preflight
    away = tmp_path / "away.JPEG"
    path.rename(away)
    path.symlink_to(away)
    open_manifest(data, "train", again=True)  # the link is older than the manifest
    elsewhere = away.rename(tmp_path / "elsewhere.JPEG")
    options = small_settings(data, tmp_path / "runs")
    ranks = start(["-c", TRAIN_AND_TELL_OF_SCANS, *options, "--schedule.epochs=1"], ranks=2)
    stdout = ranks.processes[1].stdout
    assert stdout is not None
    said_by_1 = ""
    for line in stdout:
        said_by_1 += line
        if "read again in 0.5 s" in line:
            elsewhere.rename(away)
    ranks.wait()
    assert ranks.codes == [0, 0], said_by_1 + ranks.text
    of_rank_1 = f"rank 1 on {socket.gethostname()}: warning: the image {path} cannot be used: "
    lines = [line for line in said_by_1.splitlines() if "read again" in line]
    assert [line.partition("; ")[2] for line in lines][:2] == [
        "it is read again in 0.1 s", "it is read again in 0.5 s",
    ]  # fmt: skip
    assert len(lines) == len(set(lines)) <= 3
    assert all(line.startswith(of_rank_1) for line in lines)
    assert "read again" not in ranks.outputs[0]
    assert "scans" not in said_by_1 + ranks.outputs[1]
    assert ranks.outputs[0].count("rank 0 scans ") == 1  # val: train had been indexed
    assert (said_by_1 + ranks.text).count("has no images of 1 of the 10 training classes") == 1
