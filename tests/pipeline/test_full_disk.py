"""A disk that is full, for real: nothing is lost, the error says so, and it resumes when there is
room again.

The disk is a small tmpfs, which only root may mount; where nobody may, limits on a file's size
stand in for it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jobs
import pytest
import torch
from container_writers import draw_images, write_folders
from file_limit import files_up_to
from imagenet_archives import WNIDS, jpeg, options, small_archives
from made_lines import line
from one_process import config_of, train_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import ConfigError
from pipeline.data.index.manifest import open_manifest
from pipeline.prepare import files, imagenet, index, stage
from pipeline.prepare.options import IndexOptions, StageOptions
from pipeline.ranks.heartbeat import Heartbeat
from pipeline.system.failure import Reported
from pipeline.system.files import PatientFile, Room, write_text
from pipeline.train.checkpoint import read_verified
from pipeline.train.events import read_metrics
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.monitor import RunMonitor
from pipeline.train.saving import CheckpointFolder, SaveError
from pipeline.train.trainer import Trainer
from pipeline.train.writer import CheckpointWriter

DISK_BYTES = 8 << 20  # more than a small run needs
ROOM_BYTES = 100_000  # for words, not for a checkpoint of about 0.6 MB
NO_ROOM = "does not fit .No space left on device.: make room"
EVERY_STEP = "--run.checkpoint_every_steps=1"
NEEDS = r"\(it needs about 0\.\d MB, and 0\.\d MB are free on its disk\)"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a small file system, of which no command reserves any."""
    folder = tmp_path / "disk"
    folder.mkdir()
    # Else the room is found too small before anything is written.
    monkeypatch.setattr(files, "_RESERVE_BYTES", -(1 << 40))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "user cache"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, room_bytes: int = 0) -> Path:
    """Fills the disk but for `room_bytes`; the file that does."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - room_bytes))
    return filler


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock", "imagenet.json", "staged.json")
    }


def inodes(folder: Path, pattern: str = "*.*") -> dict[Path, int]:
    return {path: path.stat().st_ino for path in folder.rglob(pattern) if path.is_file()}


def test_a_file_that_is_replaced_stays_and_the_new_ones_room_is_free_again(disk):
    write_text(disk / "a", "old")
    fill(disk, 100_000)
    with pytest.raises(OSError, match="No space left on device: '.*/disk/a'"):
        write_text(disk / "a", "x" * 200_000)
    assert (disk / "a").read_text() == "old"
    assert sorted(os.listdir(disk)) == ["a", "filler"]
    write_text(disk / "a", "x" * 50_000)


@pytest.mark.parametrize("layout", ["folders", "shards"])
def test_imagenet_goes_on_when_there_is_room_again(tmp_path, disk, layout):
    paths = small_archives(train_per_class=40).write(tmp_path / "archives")
    wanted = options(paths, disk / "out", layout=layout, shard_mb=1, workers=1)
    filler = fill(disk, 120_000)
    with pytest.raises(ConfigError, match=NO_ROOM):
        imagenet.run(wanted)
    assert not (disk / "out" / "train").exists(), "half a split has its final name"
    before = inodes(disk / "out")
    assert len(before) > 1, "nothing had been written"
    filler.unlink()
    imagenet.run(wanted)
    whole = options(paths, tmp_path / "whole", layout=layout, shard_mb=1, workers=1)
    imagenet.run(whole)
    assert contents(disk / "out") == contents(tmp_path / "whole")
    after = inodes(disk / "out")
    assert set(before.values()) <= set(after.values()), "something was written twice"


def test_imagenet_goes_on_when_its_files_may_be_larger_again(tmp_path):
    archives = small_archives()
    archives.train[WNIDS[0]][f"{WNIDS[0]}_1.JPEG"] = big = jpeg(5, side=120)
    wanted = options(archives.write(tmp_path / "archives"), tmp_path / "out")
    too_large = rf"{WNIDS[0]}_1.JPEG does not fit \(File too large\): make room; the same"
    with files_up_to(len(big) - 100), pytest.raises(ConfigError, match=too_large):
        imagenet.run(wanted)
    assert not list((tmp_path / "out").rglob(".partial-*"))
    imagenet.run(wanted)
    assert len(open_manifest(tmp_path / "out", "train")) == 18


def test_stage_goes_on_when_there_is_room_again(small_data, disk):
    wanted = StageOptions(small_data, disk / "local", workers=1)
    filler = fill(disk, 100_000)
    with pytest.raises(ConfigError, match=NO_ROOM):
        stage.run(wanted)
    before = inodes(disk / "local", "*.JPEG")
    assert before, "nothing had been copied"
    filler.unlink()
    stage.run(wanted)
    after = inodes(disk / "local", "*.JPEG")
    assert (len(after), after | before) == (80, after)
    digests = [open_manifest(root, "train").digest for root in (small_data, disk / "local")]
    assert digests[0] == digests[1]


def test_index_says_that_the_disk_is_full_and_goes_on(tmp_path, disk):
    root, cache = tmp_path / "data", disk / "cache"
    for split in ("train", "val"):
        write_folders(root / split, draw_images(200))
    wanted = IndexOptions(root, cache_dir=cache)
    index.run(wanted)
    kept = contents(cache)
    write_folders(root / "train", draw_images(201, classes=("a", "Z é", "new")))
    filler = fill(disk, 4096)
    wrong = f"index of {root}/train cannot be written to {cache} .No space left on device.; set "
    with pytest.raises(ValueError, match=wrong):
        index.run(wanted)
    assert contents(cache) == kept
    filler.unlink()
    with files_up_to(4096), pytest.raises(ValueError, match="written to .* .File too large.; set"):
        index.run(wanted)
    assert contents(cache) == kept
    shutil.rmtree(root / "train" / "new")
    index.run(wanted)
    assert set(contents(cache)) == set(kept)


def at_steps(monkeypatch: pytest.MonkeyPatch, what: dict[int, Callable[[], object]]) -> None:
    """Something happens right before some of the real steps, when no save is in flight."""
    real = Trainer.train_step

    def step(self, *rest):
        self.writer.wait()
        what.get(self.state.step, lambda: None)()
        return real(self, *rest)

    monkeypatch.setattr(Trainer, "train_step", step)


def told(run: Path) -> str:
    return (run / "log.txt").read_text()


def test_a_disk_that_was_full_for_a_while_costs_checkpoints_not_the_run(
    small_data, disk, monkeypatch
):
    free = (disk / "filler").unlink
    at_steps(monkeypatch, {3: lambda: fill(disk, ROOM_BYTES), 6: free})
    run = train_here(small_data, disk, EVERY_STEP)
    (warning,) = [line for line in told(run).splitlines() if "warning: checkpoint" in line]
    assert re.search(
        rf"step-000000004\.pt cannot be written: No space left on device {NEEDS}; the last good "
        "one is that of step 3; make room there: training continues and tries again at the next "
        "save$",
        warning,
    )
    assert re.search(
        r"saves succeed again: checkpoint \S+/step-000000007\.pt is written", told(run)
    )
    folder = CheckpointFolder(run / "checkpoints", keep=3)
    assert folder.steps() == [2, 3, 7]
    assert folder.latest()[1]["step"] == 7
    assert read_verified(folder.best)["step"] == 7
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "done"
    assert RunFolder(run).first_cause() is None


FILL_AT_STEP_3 = f"""
import shutil, sys
from pathlib import Path
from pipeline.train.trainer import Trainer
from pipeline.train.writer import CheckpointWriter
from pipeline.system.failure import run_command
from pipeline.train.__main__ import main
real, disk = Trainer.train_step, Path(sys.argv[1])
def step(self, *rest):
    if self.state.step == 3 and self.world.rank == 0:
        self.writer.wait()
        (disk / 'filler').write_bytes(bytes(shutil.disk_usage(disk).free - {ROOM_BYTES}))
    return real(self, *rest)
Trainer.train_step = step
run_command(main, sys.argv[2:])
"""


def test_when_the_last_save_finds_no_room_all_ranks_end_with_the_cause_and_go_on_later(
    small_data, disk
):
    settings = (EVERY_STEP, "--schedule.epochs=1", "--schedule.drop_epochs=[]")
    argv = [*jobs.small_settings(small_data, disk), *settings]
    ended = jobs.run(["-c", FILL_AT_STEP_3, str(disk), *argv], ranks=2, engine="torch")
    assert ended.codes == [1, 1], ended.text
    run = disk / "test"
    (error,) = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    assert re.search(
        rf"^error: checkpoint {run}/checkpoints/step-000000007\.pt cannot be written: No space "
        rf"left on device {NEEDS}; the last good one is that of step 3; make room there and start "
        "again$",
        error,
    )
    assert "Traceback" not in ended.text
    assert f"error: {RunFolder(run).first_cause()}" == error
    assert not list((run / "checkpoints").glob(".*"))
    assert CheckpointFolder(run / "checkpoints", keep=3).latest()[1]["step"] == 3
    (disk / "filler").unlink()
    train_here(small_data, disk, EVERY_STEP, "--data.local_batch_size=4")
    assert "resuming from" in told(run)
    assert CheckpointFolder(run / "checkpoints", keep=3).latest()[1]["step"] == 7
    assert RunFolder(run).first_cause() is None


def test_a_stop_without_room_is_a_failure(small_data, disk, monkeypatch):
    def stop() -> None:
        fill(disk, ROOM_BYTES)
        os.kill(os.getpid(), signal.SIGTERM)

    at_steps(monkeypatch, {3: stop})
    with pytest.raises(Reported, match=r"step-000000004\.pt .*No space left") as caught:
        train_here(small_data, disk, EVERY_STEP)
    assert caught.value.code == 1
    assert "No space left on device" in (RunFolder(disk / "test").first_cause() or "")
    assert not (disk / "test" / "stopped.txt").exists()


def writer_of(folder: CheckpointFolder) -> CheckpointWriter:
    return CheckpointWriter(folder, torch.device("cpu"), Heartbeat())


def test_each_time_without_room_is_told_once_and_the_last_save_fails(disk, caplog):
    folder = CheckpointFolder(disk / "checkpoints", keep=3)
    writer, content = writer_of(folder), {"model": torch.zeros(200_000)}
    fill(disk, ROOM_BYTES)
    wrong = "it needs about 0.8 MB, .* there is none yet; make room there and start again"
    with pytest.raises(SaveError, match=wrong):
        writer.save(1, content, last=True)
    with caplog.at_level(logging.INFO, logger="trainyard"):
        for step in range(1, 8):
            if step == 5:
                fill(disk, ROOM_BYTES)
            writer.save(step, content)
            writer.wait()
            if step in (2, 5):
                (disk / "filler").unlink()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2  # one for each time, not for each save
    assert "there is none yet; make room there: training continues and tries" in warnings[0]
    assert "the last good one is that of step 4; make room there: training" in warnings[1]
    assert folder.steps() == [4, 6, 7]


def test_a_disk_that_stays_full_is_told_again_with_what_is_missed(disk, caplog):
    folder = CheckpointFolder(disk / "checkpoints", keep=3)
    writer, content = writer_of(folder), {"model": torch.zeros(200_000)}
    folder.save(0, content)
    fill(disk, ROOM_BYTES)
    for step in range(1, 102):
        writer.save(step, content)
    writer.wait()
    told_of = [r.getMessage().partition("next save")[2] for r in caplog.records]
    assert told_of == [
        "", "; 10 saves are missed by now", "; 100 saves are missed by now"
    ]  # fmt: skip


def test_a_best_that_cannot_be_copied_leaves_the_checkpoint_and_prunes_the_old(
    disk, caplog, monkeypatch
):
    def refused(*_: object) -> None:
        raise OSError("a file system without hard links")

    monkeypatch.setattr(os, "link", refused)
    folder = CheckpointFolder(disk / "checkpoints", keep=2)
    writer, content = writer_of(folder), {"model": {"weight": torch.zeros(250_000)}}
    for step in (1, 2):
        folder.save(step, content)
    filler = fill(disk, 1_300_000)  # for the copy only once the oldest is gone
    writer.save(3, content, best=True)
    writer.wait()
    assert folder.steps() == [2, 3] and read_verified(folder.best)
    assert caplog.text == ""
    filler.unlink()
    fill(disk, ROOM_BYTES)
    writer.save(4, content, best=True)
    writer.wait()
    assert "but best.pt stays that of an earlier validation" in caplog.text
    assert folder.steps() == [2, 3]


def test_a_failure_without_room_for_a_word_is_still_one(disk):
    fill(disk)
    assert RunFolder(disk).record_first_cause("the loss is nan")
    assert (disk / "failure.txt").stat().st_size == 0
    assert "too full for the cause" in (RunFolder(disk).first_cause() or "")
    (disk / "filler").unlink()
    (disk / "failure.txt").unlink()
    RunFolder(disk).record_first_cause("the loss is nan")
    assert RunFolder(disk).first_cause() == "the loss is nan"


def test_metrics_and_curves_wait_for_room_with_one_warning(disk, caplog):
    monitor = RunMonitor(RunFolder(disk), config_of(disk, disk), 0, 0, 1000)
    monitor.train(line("train", 10, loss=1.0))
    filler = fill(disk)
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        for position in range(20, 520, 10):  # more than the rest of any file's last page
            monitor.train(line("train", position, loss=2.0))
    assert caplog.text.count("warning: ") == 1
    assert "cannot be written: No space left on device; training continues" in caplog.text
    assert len(read_metrics(disk / "metrics.jsonl")) < 51
    assert "is cut" not in caplog.text  # whole lines only
    filler.unlink()
    monitor.train(line("train", 520, loss=3.0))
    monitor.close()
    wanted = [(10, 1.0), *((position, 2.0) for position in range(20, 520, 10)), (520, 3.0)]
    lines = read_metrics(disk / "metrics.jsonl")
    assert [(one["position"], one["loss"]) for one in lines] == wanted
    board = EventAccumulator(str(disk / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == wanted


def test_a_checkpoints_room_is_left_to_it(disk, caplog):
    file = PatientFile(disk / "metrics.jsonl", Room(disk, reserve_bytes=300_000))
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
