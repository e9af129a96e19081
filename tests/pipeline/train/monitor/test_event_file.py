"""Event files: their order whatever the clock does, and folders of other runs."""

import logging
import shutil
import time

import pytest
from made_lines import line
from one_process import config_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from pipeline.train.monitor.board import event_files
from pipeline.train.monitor.monitor import RunMonitor


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


@pytest.fixture
def make_run(tmp_path):
    """Makes a run below `tmp_path` whose loss is the same at 10, 20, ... images; its folder."""

    def make(name: str, loss: float, start: int = 0, seen: int = 60):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monitor = RunMonitor(folder, config_of(tmp_path, tmp_path), start, 0, 100)
        for position in range(start + 10, seen, 10):
            monitor.train(line("train", position, loss=loss))
        monitor.close()
        return folder

    return make


def losses(folder):
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars("train/loss")]


def without_id(path):
    """Makes an event file as earlier versions wrote it."""
    records = [Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]
    records[1].session_log.msg = ""
    with open(path, "wb") as file:
        for record in records:
            RecordWriter(file).write(record.SerializeToString())


def test_another_runs_event_file_is_refused_by_name_beside_the_runs_own(make_run):
    own, other = make_run("own", 1.0, seen=30), make_run("other", 2.0)
    (file,) = event_files(other / "tensorboard")
    copied = shutil.copy(file, own / "tensorboard" / f"{file.name}.copied")
    with pytest.raises(ValueError, match=r"event file .*\.copied is of another run \(.*; move "):
        make_run("own", 1.0, start=20)
    copied.unlink()
    assert losses(make_run("own", 3.0, start=20)) == [
        (10, 1.0), (20, 1.0), (30, 3.0), (40, 3.0), (50, 3.0)
    ]  # fmt: skip


def test_a_run_that_is_copied_whole_goes_on_in_its_copy(make_run, tmp_path):
    shutil.copytree(make_run("own", 1.0, seen=30), tmp_path / "elsewhere")
    assert losses(make_run("elsewhere", 1.0, start=20))[-1] == (50, 1.0)


def test_event_files_from_before_runs_had_ids_are_taken(make_run):
    run = make_run("old", 1.0, seen=30)
    without_id(event_files(run / "tensorboard")[0])
    (run / "run_id.txt").unlink()
    assert losses(make_run("old", 1.0, start=20))[0] == (10, 1.0)
    assert losses(make_run("old", 1.0, start=20))[0] == (10, 1.0)  # with an id of its own now


def test_a_copied_event_file_is_refused_by_a_run_that_has_no_id_yet(make_run):
    run, other = make_run("old", 1.0, seen=30), make_run("other", 2.0)
    without_id(event_files(run / "tensorboard")[0])
    (run / "run_id.txt").unlink()
    (file,) = event_files(other / "tensorboard")
    shutil.copy(file, run / "tensorboard" / f"{file.name}.copied")
    with pytest.raises(ValueError, match=r"old has no run_id\.txt to say that it is that run"):
        make_run("old", 1.0, start=20)


def test_a_run_that_lost_its_metrics_goes_on_with_its_curves_and_says_so(make_run, caplog):
    run = make_run("own", 1.0)
    (run / "metrics.jsonl").unlink()
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        make_run("own", 3.0, start=40)
    assert f"metrics.jsonl is missing in {run} and begins anew at 40 images seen" in caplog.text
    assert losses(run) == [(10, 1.0), (20, 1.0), (30, 1.0), (50, 3.0)]


def test_event_files_of_which_nothing_says_whose_they_are_are_refused(make_run):
    run = make_run("own", 1.0)
    for name in ("metrics.jsonl", "run_id.txt"):
        (run / name).unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl is missing in .*; bring it back, or "):
        make_run("own", 1.0, start=40)
    assert not (run / "metrics.jsonl").exists()


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
