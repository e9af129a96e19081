"""Checkpoints that a thread writes while training goes on: their content, order, and failures."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest
import torch
from one_process import train_here
from run_files import checkpoint_steps, differences, metrics, newest_checkpoint, state_differences

from pipeline.ranks.heartbeat import Heartbeat
from pipeline.system.failure import ExitCode, Reported
from pipeline.train.checkpoint import read_verified
from pipeline.train.folder import RunFolder
from pipeline.train.saving import CheckpointFolder
from pipeline.train.snapshot import Snapshot
from pipeline.train.trainer import Trainer
from pipeline.train.writer import CheckpointWriter

CPU = torch.device("cpu")
EVERY_STEP = ("--run.checkpoint_every_steps=1", "--run.keep_checkpoints=9")
PATIENCE_SEC = 60.0


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "checkpoint"]


def syncing(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], object]) -> None:
    """`before` gets the name of each file of a checkpoint that reaches the disk, ahead of that."""
    real = os.fsync

    def sync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if found := re.search(r"step-\d+\.pt", name):
            before(found.group())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)


def after_step(monkeypatch: pytest.MonkeyPatch, then: Callable[[Trainer], object]) -> None:
    """`then` is called after the work of every step, before it counts."""
    real = Trainer.train_step

    def step(self, *rest):
        found = real(self, *rest)
        then(self)
        return found

    monkeypatch.setattr(Trainer, "train_step", step)


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """A run of 7 steps with each of its checkpoints."""
    yield train_here(small_data, tmp_path_factory.mktemp("whole"), *EVERY_STEP)


def test_what_is_written_during_later_steps_is_the_state_before_them(
    small_data, whole, tmp_path, monkeypatch
):
    trained, seen = threading.Event(), []

    def then(trainer: Trainer) -> None:
        if trainer.state.step == 4:
            trained.set()

    real = CheckpointFolder.save

    def save(self, step, *rest):
        if step == 3:  # nothing of the content is read before the weights have changed twice
            assert trained.wait(PATIENCE_SEC)
            seen.append(threading.current_thread().name)
        return real(self, step, *rest)

    monkeypatch.setattr(CheckpointFolder, "save", save)
    after_step(monkeypatch, then)
    options = ("--run.checkpoint_every_steps=3", "--run.keep_checkpoints=9")
    run = train_here(small_data, tmp_path, *options)
    assert seen == ["checkpoint"], "nothing was written while training went on"
    assert checkpoint_steps(run) == [3, 6, 7]
    for step in (3, 6, 7):
        name = CheckpointFolder(Path("checkpoints"), 1).path(step)
        found, wanted = read_verified(run / name), read_verified(whole / name)
        state = {n: v for n, v in wanted.items() if n not in ("config", "window")}
        assert differences({n: found[n] for n in state}, state) == []
    for name in ("step-000000006.pt", "step-000000007.pt", "best.pt"):
        (run / "checkpoints" / name).unlink()
    train_here(small_data, tmp_path)
    assert state_differences(run, whole) == []
    assert metrics(run) == metrics(whole)
    assert threads() == []


def test_one_write_is_in_flight_and_the_next_save_waits_for_it(tmp_path, monkeypatch):
    events, slow, begun = [], threading.Event(), threading.Event()

    def sync(name: str) -> None:
        events.append(f"{name} begins")
        begun.set()
        assert slow.wait(PATIENCE_SEC)
        events.append(f"{name} ends")

    syncing(monkeypatch, sync)
    folder = CheckpointFolder(tmp_path, keep=3)
    writer = CheckpointWriter(folder, CPU, Heartbeat())
    writer.save(1, {"step": torch.tensor(1)})
    assert begun.wait(PATIENCE_SEC)  # `save` has returned, and its file does not reach the disk

    def others() -> None:
        writer.save(2, {"step": torch.tensor(2)})
        writer.save(3, {"step": torch.tensor(3)}, last=True)

    second = threading.Thread(target=others)
    second.start()
    second.join(0.2)  # too short a time proves nothing, and fails nothing
    assert second.is_alive() and events == ["step-000000001.pt begins"] and threads()
    slow.set()
    second.join(PATIENCE_SEC)
    names = [f"step-00000000{step}.pt" for step in (1, 2, 3)]
    assert events == [f"{name} {what}" for name in names for what in ("begins", "ends")]
    assert threads() == []
    assert [int(read_verified(folder.path(step))["step"]) for step in (1, 2, 3)] == [1, 2, 3]


def test_any_error_costs_one_checkpoint_and_is_told_once(small_data, whole, tmp_path, monkeypatch):
    errors: dict[str, Exception] = {
        "step-000000001.pt": OSError(errno.EIO, "Input/output error"),  # there is none yet
        "step-000000003.pt": OSError(errno.ESTALE, "Stale file handle"),
        "step-000000004.pt": OSError(errno.EACCES, "Permission denied"),
        "step-000000006.pt": RuntimeError("what a library says"),
    }

    def sync(name: str) -> None:
        if (error := errors.pop(name, None)) is not None:
            raise error

    syncing(monkeypatch, sync)
    run = train_here(small_data, tmp_path, *EVERY_STEP)
    assert checkpoint_steps(run) == [2, 5, 7] and not errors
    assert state_differences(run, whole) == [] and metrics(run) == metrics(whole)
    told = re.findall(r"warning: (checkpoint .*)", (run / "log.txt").read_text())
    said = (
        r"step-000000001\.pt cannot be written: Input/output error .*; there is none yet; have "
        r"that folder take files again: training continues and tries again at the next save$",
        r"step-000000003\.pt cannot be written: Stale file handle .* one is that of step 2; have",
        r"step-000000006\.pt is not written: RuntimeError: what a library says; see to that: ",
    )  # of two in a row the first is told
    assert len(told) == len(said), told
    assert all(re.search(pattern, line) for pattern, line in zip(said, told, strict=True)), told
    assert (run / "log.txt").read_text().count("saves succeed again: checkpoint") == 3
    assert RunFolder(run).first_cause() is None
    assert not list((run / "checkpoints").glob(".*"))


def test_without_memory_for_the_copy_a_save_is_missed(tmp_path, monkeypatch, caplog):
    folder = CheckpointFolder(tmp_path, keep=3)
    writer, content = CheckpointWriter(folder, CPU, Heartbeat()), {"model": torch.zeros(3)}

    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as now:
        now.setattr(torch, "empty_like", refused)
        writer.save(1, content, best=True)
        assert "step-000000001.pt is not written: RuntimeError: DefaultCPU" in caplog.text
        assert "but best.pt stays that of an earlier validation" in caplog.text
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            writer.save(2, content, last=True)
    writer.save(3, content)
    writer.close()
    assert folder.steps() == [3]


def test_when_no_save_succeeds_the_last_ends_the_run_and_a_new_start_begins_anew(
    small_data, whole, tmp_path, monkeypatch
):
    def refuse(_: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as now:
        syncing(now, refuse)
        with pytest.raises(Reported) as ended:
            train_here(small_data, tmp_path, *EVERY_STEP)
    assert ended.value.code == ExitCode.FAILED
    assert re.search(
        r"checkpoint \S+/step-000000007\.pt cannot be written: Read-only file system .*; there is "
        r"none yet; have that folder take files again and start again$",
        ended.value.message,
    )
    run = tmp_path / "test"
    assert RunFolder(run).first_cause() == ended.value.message
    assert (run / "log.txt").read_text().count("training continues and tries") == 1
    val = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["saved"] for line in val if line["event"] == "val"] == [False]
    assert threads() == [] and checkpoint_steps(run) == []
    train_here(small_data, tmp_path, *EVERY_STEP)  # nothing is lost that a checkpoint had
    assert state_differences(run, whole) == [] and metrics(run) == metrics(whole)


def test_however_a_run_ends_its_folder_stays_locked_while_it_writes(
    small_data, tmp_path, monkeypatch
):
    ends, held = threading.Event(), []

    def sync(name: str) -> None:
        if name != "step-000000004.pt":
            return
        assert ends.wait(PATIENCE_SEC)
        with open(tmp_path / "test" / "lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(False)
            except BlockingIOError:
                held.append(True)

    def then(trainer: Trainer) -> None:
        if trainer.state.step == 4:
            timer = threading.Timer(0.3, ends.set)  # when this thread has long been in `close`
            timer.start()
            raise ValueError("an error in step 4")

    syncing(monkeypatch, sync)
    after_step(monkeypatch, then)
    with pytest.raises(ValueError, match="an error in step 4"):
        train_here(small_data, tmp_path, *EVERY_STEP)
    assert held == [True] and threads() == []
    assert newest_checkpoint(tmp_path / "test")["step"] == 4


def test_a_kill_while_a_write_is_in_flight_leaves_the_checkpoint_before_it(small_data, tmp_path):
    whole = train_here(small_data, tmp_path / "whole", "--data.local_batch_size=4")
    argv = [*jobs.small_settings(small_data, tmp_path), "--run.checkpoint_every_steps=2"]
    argv += ["--schedule.epochs=1", "--schedule.drop_epochs=[]"]
    ended = jobs.run([str(jobs.SABOTEUR), "kill-writing:5:0", *argv], ranks=2, engine="torch")
    assert ended.codes == [-9, 1], ended.text
    run = tmp_path / "test"
    assert len(list((run / "checkpoints").glob(".partial-*"))) == 1
    assert checkpoint_steps(run) == [2] and newest_checkpoint(run)["step"] == 2
    train_here(small_data, tmp_path, "--data.local_batch_size=4")
    assert "step-000000002.pt at step 2" in (run / "log.txt").read_text()
    own = ("window", "rank_statistics")  # of each of the ranks that saved
    assert [one for one in state_differences(run, whole) if one not in own] == []
    assert metrics(run) == metrics(whole)
    assert not list((run / "checkpoints").glob(".*"))
    shutil.rmtree(tmp_path)


def test_a_copy_keeps_types_strides_and_its_memory_for_the_next():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    content = {"model": {"weight": weight, "n": torch.tensor(3)}, "history": [{"top1": 0.5}]}
    snapshot = Snapshot(CPU)
    first = snapshot.take(content)
    assert differences(first, content) == [] and list(first) == list(content)
    before = first["model"]["weight"].clone()
    weight.zero_()
    content["history"].append({"top1": 0.6})
    assert torch.equal(first["model"]["weight"], before) and first["history"] == [{"top1": 0.5}]
    half = torch.arange(5, dtype=torch.bfloat16)
    assert torch.equal(Snapshot(CPU).take({"half": half})["half"], half)
    second = snapshot.take(content)
    assert differences(second, content) == []
    assert second["model"]["weight"].data_ptr() == first["model"]["weight"].data_ptr()


@pytest.mark.gpu
def test_on_a_gpu_a_copy_makes_the_next_update_wait_and_not_the_host():
    device = torch.device("cuda")
    weights = [torch.full((64, 64, 3, 3), 1.0, device=device) for _ in range(50)]
    snapshot = Snapshot(device)
    content = {"model": {str(number): weight for number, weight in enumerate(weights)}}
    snapshot.take(content)  # reserves memory, for which a host may wait
    snapshot.wait()
    large = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value in range(2, 7):
            for _ in range(20):  # so that the device is behind
                large = large @ large
            for weight in weights:
                weight.fill_(value)
            copied = snapshot.take(content)
            snapshot.before_update()
            for weight in weights:
                weight.fill_(-1.0)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    snapshot.wait()
    assert all(bool((one == 6.0).all()) for one in copied["model"].values())
    assert all(one.is_pinned() for one in copied["model"].values())


@pytest.mark.gpu
def test_a_run_on_a_gpu_saves_what_training_then_changes(small_data, tmp_path):
    bits = ("--run.device=cuda", "--run.sums=fixed", "--run.autotune=false")
    options = (*EVERY_STEP, *bits, "--optim.ema_decay=0.9")
    run, other = (train_here(small_data, tmp_path / name, *options) for name in ("a", "b"))
    for name in ("step-000000005.pt", "step-000000006.pt", "step-000000007.pt"):
        (other / "checkpoints" / name).unlink()
    (other / "checkpoints" / "best.pt").unlink()
    train_here(small_data, tmp_path / "b", *options)
    assert "step-000000004.pt at step 4" in (other / "log.txt").read_text()
    assert state_differences(other, run) == []
