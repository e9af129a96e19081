"""Event files: their order whatever the clock does, and what is drawn again."""

import logging
import shutil
import time

import pytest
from made_lines import line
from one_process import config_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.train.folder import RunFolder
from pipeline.train.monitor.board import event_files
from pipeline.train.monitor.monitor import RunMonitor


def steps(folder):
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.step for event in board.Scalars("train/loss")]


def test_a_start_takes_back_what_came_before_also_when_the_clock_has_jumped(tmp_path, monkeypatch):
    config, now = config_of(tmp_path, tmp_path), time.time()
    for jump_sec, position in ((0, 0), (0, 20), (-86400, 20), (3600, 10)):
        monkeypatch.setattr(time, "time", lambda: now + jump_sec)  # noqa: B023  (used at once)
        monitor = RunMonitor(RunFolder(tmp_path), config, position, 0, 100)
        for seen in range(position + 10, 60, 10):
            monitor.train(line("train", seen))
        monitor.close()
        assert steps(tmp_path) == [10, 20, 30, 40, 50]
    assert len(event_files(tmp_path / "tensorboard")) == 4


@pytest.fixture
def make_run(tmp_path):
    """Makes a run below `tmp_path` whose loss is the same at 10, 20, ... images; its folder."""

    def make(name: str, loss: float, start: int = 0, seen: int = 60):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monitor = RunMonitor(RunFolder(folder), config_of(tmp_path, tmp_path), start, 0, 100)
        for position in range(start + 10, seen, 10):
            monitor.train(line("train", position, loss=loss))
        monitor.close()
        return folder

    return make


def losses(folder):
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars("train/loss")]


def test_a_run_that_is_copied_whole_goes_on_in_its_copy(make_run, tmp_path):
    shutil.copytree(make_run("own", 1.0, seen=30), tmp_path / "elsewhere")
    assert losses(make_run("elsewhere", 1.0, start=20))[-1] == (50, 1.0)


def test_a_run_that_lost_its_metrics_goes_on_with_its_curves_and_says_so(make_run, caplog):
    run = make_run("own", 1.0)
    (run / "metrics.jsonl").unlink()
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        make_run("own", 3.0, start=40)
    assert f"metrics.jsonl is missing in {run} and begins anew at 40 images seen" in caplog.text
    assert losses(run) == [(10, 1.0), (20, 1.0), (30, 1.0), (50, 3.0)]


def test_curves_whose_files_are_gone_are_drawn_anew_from_the_metrics(make_run):
    run = make_run("own", 1.0, seen=40)
    shutil.rmtree(run / "tensorboard")
    make_run("own", 3.0, start=20)
    assert losses(run) == [(10, 1.0), (20, 1.0), (30, 3.0), (40, 3.0), (50, 3.0)]
    tags = EventAccumulator(str(run / "tensorboard")).Reload().Tags()["tensors"]
    assert "custom_scalars__config__" in tags


def test_pictures_of_the_validation_that_stays_are_drawn_again(tmp_path):
    import numpy as np

    config, grey = config_of(tmp_path, tmp_path), np.full((4, 8, 8, 3), 90, np.uint8)
    first = RunMonitor(RunFolder(tmp_path), config, 0, 0, 100)
    first.train(line("train", 50))
    first.val(line("val", 50))
    first.mistakes(grey, [("is a", "not b 90%")] * 4, 50)
    first.classes(["a", "b"], [1, 2], [2, 2], 50)
    first.images(grey, 50)
    first.close()
    for validations, wanted in ((1, [50]), (0, [])):
        again = RunMonitor(RunFolder(tmp_path), config, 50, validations, 100)
        again.images(grey, 50)
        again.close()
        board = EventAccumulator(
            str(tmp_path / "tensorboard"), size_guidance={"images": 0}
        ).Reload()
        images = {tag: [e.step for e in board.Images(tag)] for tag in board.Tags()["images"]}
        assert images.get("train/augmented") == [50]
        assert images.get("val/mistakes", []) == wanted
        assert images.get("val/classes", []) == wanted
