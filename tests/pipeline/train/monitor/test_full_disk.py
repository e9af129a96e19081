"""A disk that fills up under a run: the training goes on, and nothing is lost in the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_lines import line
from one_process import config_of
from small_disk import fill, small_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.system.files import PatientFile, Room
from pipeline.train.folder import RunFolder, read_metrics
from pipeline.train.monitor.monitor import RunMonitor


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a file system of 1 MB."""
    with small_disk(tmp_path / "disk", 1 << 20) as folder:
        yield folder


def losses(run: Path) -> list[tuple[int, float]]:
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars("train/loss")]


def test_metrics_and_curves_wait_for_room_with_one_warning(disk, caplog):
    monitor = RunMonitor(RunFolder(disk), config_of(disk, disk), 0, 0, 1000)
    monitor.train(line("train", 10, loss=1.0))
    filler = fill(disk)
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        for position in range(20, 520, 10):  # more than the rest of any file's last page
            monitor.train(line("train", position, loss=2.0))
    assert caplog.text.count("warning: ") == 1
    assert "cannot be written: No space left on device; the training goes on" in caplog.text
    assert len(read_metrics(disk / "metrics.jsonl")) < 51
    assert "is cut" not in caplog.text  # whole lines only
    filler.unlink()
    monitor.train(line("train", 520, loss=3.0))
    monitor.close()
    wanted = [(10, 1.0), *((position, 2.0) for position in range(20, 520, 10)), (520, 3.0)]
    lines = read_metrics(disk / "metrics.jsonl")
    assert [(one["position"], one["loss"]) for one in lines] == wanted
    assert losses(disk) == wanted


def test_a_checkpoints_room_is_left_to_it(disk, caplog):
    room = Room(disk, reserve_bytes=300_000)
    file = PatientFile(disk / "metrics.jsonl", room)
    file.write(b"first\n")
    filler = fill(disk, room_bytes=250_000)
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        file.write(b"second\n")
    assert "MB are free on its disk, and a checkpoint needs 0.3 MB" in caplog.text
    assert (disk / "metrics.jsonl").read_bytes() == b"first\n"
    filler.unlink()
    file.close()
    assert (disk / "metrics.jsonl").read_bytes() == b"first\nsecond\n"


def test_a_record_of_which_only_a_part_fits_is_cut_off_again(disk):
    file = PatientFile(disk / "file", Room(disk))
    file.write(b"whole\n")
    filler = fill(disk, room_bytes=8192)
    file.write(b"x" * 20_000)
    assert (disk / "file").read_bytes() == b"whole\n"
    filler.unlink()
    file.close()
    assert (disk / "file").stat().st_size == 20_006
