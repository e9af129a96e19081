"""Event files: their order whatever the clock does, and folders of other runs."""

import time

import pytest
from made_lines import line
from one_process import config_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.monitor import RunMonitor
from pipeline.monitor.event_file import event_files


def steps(folder):
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.step for event in board.Scalars("train/loss")]


def test_a_start_takes_back_what_came_before_also_when_the_clock_has_jumped(tmp_path, monkeypatch):
    config, now = config_of(tmp_path, tmp_path), time.time()
    for jump_sec, position in ((0, 0), (0, 20), (-86400, 20), (3600, 10)):
        monkeypatch.setattr(time, "time", lambda: now + jump_sec)  # noqa: B023  (used at once)
        monitor = RunMonitor(tmp_path, config, position, 0, 100)
        for seen in range(position + 10, 60, 10):
            monitor.train(line("train", seen))
        monitor.close()
        assert steps(tmp_path) == [10, 20, 30, 40, 50]
    assert len(event_files(tmp_path / "tensorboard")) == 4


def test_event_files_of_another_run_are_refused(tmp_path):
    config = config_of(tmp_path, tmp_path)
    board = tmp_path / "run" / "tensorboard"
    board.mkdir(parents=True)
    (board / "events.out.tfevents.1700000000.host.1.0").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"tensorboard holds event files of another run, for .*/run"
    ):
        RunMonitor(tmp_path / "run", config, 0, 0, 100)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_pictures_of_the_validation_that_stays_are_drawn_again(tmp_path):
    import numpy as np

    config, grey = config_of(tmp_path, tmp_path), np.full((4, 8, 8, 3), 90, np.uint8)
    first = RunMonitor(tmp_path, config, 0, 0, 100)
    first.train(line("train", 50))
    first.val(line("val", 50))
    first.mistakes(grey, [("is a", "not b 90%")] * 4, 50)
    first.classes(["a", "b"], [1, 2], [2, 2], 50)
    first.images(grey, 50)
    first.close()
    for validations, wanted in ((1, [50]), (0, [])):
        again = RunMonitor(tmp_path, config, 50, validations, 100)
        again.images(grey, 50)
        again.close()
        board = EventAccumulator(
            str(tmp_path / "tensorboard"), size_guidance={"images": 0}
        ).Reload()
        images = {tag: [e.step for e in board.Images(tag)] for tag in board.Tags()["images"]}
        assert images.get("train/augmented") == [50]
        assert images.get("val/mistakes", []) == wanted
        assert images.get("val/classes", []) == wanted
