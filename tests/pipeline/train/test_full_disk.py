"""A disk that fills up under a training: its checkpoints wait for room, but the last one."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jobs
import pytest
import torch
from one_process import train_here
from small_disk import fill, small_disk

from pipeline.system.failure import Reported
from pipeline.train import trainer as engine
from pipeline.train.checkpoint import CheckpointFolder, SaveError, read_verified
from pipeline.train.folder import RunFolder

ROOM_BYTES = 100_000  # for words, not for a checkpoint of about 0.6 MB
EVERY_STEP = "--run.checkpoint_every_steps=1"
NEEDS = r"\(it needs about 0\.\d MB, and 0\.\d MB are free on its disk\)"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a file system of 8 MB, more than a small run needs."""
    with small_disk(tmp_path / "disk", 8 << 20) as folder:
        yield folder


def at_steps(monkeypatch: pytest.MonkeyPatch, what: dict[int, Callable[[], object]]) -> None:
    """Something happens right before some of the real steps."""
    real = engine.train_step

    def step(job, *rest):
        what.get(job.progress.step, lambda: None)()
        return real(job, *rest)

    monkeypatch.setattr(engine, "train_step", step)


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
        "one is that of step 3; make room there: the training goes on and tries again at the next "
        "save$",
        warning,
    )
    assert re.search(
        r"there is room again: checkpoint \S+/step-000000007\.pt is written", told(run)
    )
    folder = CheckpointFolder(run / "checkpoints", keep=3)
    assert folder.steps() == [2, 3, 7]
    assert folder.latest()[1]["step"] == 7
    assert read_verified(folder.best)["step"] == 7
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "done"
    assert RunFolder(run).first_cause() is None


def test_when_the_last_save_finds_no_room_all_ranks_end_with_the_cause_and_go_on_later(
    small_data, disk
):
    script = (
        "import os, shutil, sys\n"
        "from pathlib import Path\n"
        "from pipeline.train import trainer\n"
        "from pipeline.system.failure import run_command\n"
        "from pipeline.train.__main__ import main\n"
        "real, disk = trainer.train_step, Path(sys.argv[1])\n"
        "def step(job, *rest):\n"
        "    if job.progress.step == 3 and job.world.rank == 0:\n"
        f"        room = shutil.disk_usage(disk).free - {ROOM_BYTES}\n"
        "        (disk / 'filler').write_bytes(bytes(room))\n"
        "    return real(job, *rest)\n"
        "trainer.train_step = step\n"
        "run_command(main, sys.argv[2:])\n"
    )
    settings = (EVERY_STEP, "--schedule.epochs=1", "--schedule.drop_epochs=[]")
    argv = [*jobs.small_settings(small_data, disk), *settings]
    ended = jobs.run(["-c", script, str(disk), *argv], ranks=2)
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


def test_without_a_checkpoint_to_fall_back_on_a_run_does_not_wait(disk, caplog):
    folder = CheckpointFolder(disk / "checkpoints", keep=3)
    content = {"model": torch.zeros(200_000)}
    fill(disk, ROOM_BYTES)
    wrong = "it needs about 0.8 MB, .* there is none yet; make room there and start again"
    with pytest.raises(SaveError, match=wrong):
        folder.save_or_wait(1, content)
    (disk / "filler").unlink()
    with caplog.at_level(logging.INFO, logger="trainyard"):
        for step in range(1, 7):
            if step in (2, 5):
                fill(disk, ROOM_BYTES)
            folder.save_or_wait(step, content)
            if step in (3, 5):
                (disk / "filler").unlink()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2  # one for each time, not for each save
    assert "last good one is that of step 1" in warnings[0]
    assert folder.steps() == [1, 4, 6]


def test_a_failure_without_room_for_a_word_is_still_one(disk):
    fill(disk)
    assert RunFolder(disk).record_first_cause("the loss is nan")
    assert (disk / "failure.txt").stat().st_size == 0
    assert "too full for the cause" in (RunFolder(disk).first_cause() or "")
    (disk / "filler").unlink()
    (disk / "failure.txt").unlink()
    assert RunFolder(disk).first_cause() is None
    RunFolder(disk).record_first_cause("the loss is nan")
    assert RunFolder(disk).first_cause() == "the loss is nan"


def test_a_best_that_cannot_be_copied_leaves_the_checkpoint_and_prunes_the_old(
    disk, caplog, monkeypatch
):
    def refused(*_: object) -> None:
        raise OSError("a file system without hard links")

    monkeypatch.setattr(os, "link", refused)
    folder = CheckpointFolder(disk / "checkpoints", keep=2)
    content = {"model": {"weight": torch.zeros(250_000)}}
    for step in (1, 2):
        folder.save(step, content)
    filler = fill(disk, 1_300_000)  # for the copy only once the oldest is gone
    folder.save_or_wait(3, content, best=True)
    assert folder.steps() == [2, 3] and read_verified(folder.best)
    assert caplog.text == ""
    filler.unlink()
    fill(disk, ROOM_BYTES)
    folder.save_or_wait(4, content, best=True)
    assert "but best.pt stays that of an earlier validation" in caplog.text
    assert folder.steps() == [2, 3]
