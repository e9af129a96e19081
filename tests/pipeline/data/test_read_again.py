"""Reading from a file system that refuses for a while."""

import logging
import threading

import pytest
from jobs import copy_data

from pipeline.data.dali import read_patiently
from pipeline.data.manifest import BadImage, open_manifest


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
