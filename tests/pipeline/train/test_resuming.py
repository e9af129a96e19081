"""Where a run begins: nothing whole is passed over or deleted, and nothing starts from scratch
unasked."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from one_process import train_here
from run_files import newest_checkpoint, state_differences

from pipeline.system import files
from pipeline.system.failure import ExitCode, Reported
from pipeline.system.regular import whole
from pipeline.train.checkpoint import UnreadableCheckpoint, read_verified
from pipeline.train.saving import CheckpointFolder

CONTENT = {"model": {"weight": torch.arange(4.0)}}
REFUSALS = [OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE)]
REFUSALS += [PermissionError(errno.EACCES, os.strerror(errno.EACCES)), MemoryError()]


@pytest.fixture(autouse=True)
def without_naps(monkeypatch):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0, 0.0, 0.0))


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    for step in (4, 6, 7):
        folder.save(step, {**CONTENT, "step": step})
    return folder


def refuse(monkeypatch, name: str, error: Exception, times: int) -> None:
    """The next `times` reads of files of that name fail, as those of a server that is away."""
    real, left = whole, [times]

    def read_bytes(path):
        if path.name == name and left[0] > 0:
            left[0] -= 1
            raise error
        return real(path)

    monkeypatch.setattr("pipeline.system.files.whole", read_bytes)


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_read_that_is_refused_for_a_while_is_tried_again(folder, monkeypatch, caplog, error):
    refuse(monkeypatch, "step-000000007.pt", error, times=3)
    with caplog.at_level(logging.WARNING, logger="trainyard.files"):
        path, content = folder.latest()
    assert (path, content["step"]) == (folder.path(7), 7)
    assert caplog.text.count("step-000000007.pt cannot be read: ") == 3
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_read_that_stays_refused_is_no_damage(folder, monkeypatch, error):
    refuse(monkeypatch, "step-000000007.pt", error, times=9)
    reason = error.strerror if isinstance(error, OSError) else "Cannot allocate memory"
    wrong = f"step-000000007.pt cannot be read: {reason}; it may be whole, and nothing was deleted"
    with pytest.raises(UnreadableCheckpoint, match=wrong):
        folder.latest()
    assert folder.steps() == [4, 6, 7]


def test_too_little_memory_for_torch_is_no_damage(folder, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nand so on")

    monkeypatch.setattr(torch, "load", load)
    wrong = "is whole but cannot be loaded: .* can't allocate memory; give this process more memory"
    with pytest.raises(UnreadableCheckpoint, match=wrong):
        folder.latest()


def test_only_what_was_read_as_damaged_is_deleted(folder, caplog):
    damaged = folder.path(7)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert folder.latest()[0] == folder.path(6)
    with caplog.at_level(logging.INFO, logger="trainyard"):
        folder.set_aside_after(4)
    assert folder.steps() == [4]
    aside = folder.folder / "later-step-000000006.pt"
    assert f"the checkpoint of step 6 is kept as {aside}" in caplog.text
    assert read_verified(aside)["step"] == 6
    assert not damaged.exists()


def test_a_save_removes_none_that_is_newer(folder):
    folder.save(5, {**CONTENT, "step": 5})
    assert folder.steps() == [4, 5, 6, 7]
    folder.save(8, {**CONTENT, "step": 8})
    assert folder.steps() == [6, 7, 8]


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(folder, caplog):
    os.unlink(folder.path(4))
    folder.path(4).mkdir()
    folder.save(8, {**CONTENT, "step": 8})
    assert "old checkpoints in" in caplog.text and "training continues" in caplog.text
    assert folder.steps() == [4, 6, 7, 8]


def test_best_that_is_a_name_of_that_checkpoint_already_leaves_nothing(folder):
    for _ in range(2):
        folder.link_best(folder.path(7))
    (folder.folder / ".best.pt.partial").write_bytes(b"left by an early version")
    folder.remove_leftovers()
    names = {"step-000000004.pt", "step-000000006.pt", "step-000000007.pt", "best.pt"}
    assert set(os.listdir(folder.folder)) == names
    assert folder.best.samefile(folder.path(7))


# The same in a real run: 7 steps, checkpoints 4, 6 and 7, the last one the best.


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    yield train_here(small_data, runs, "--run.checkpoint_every_steps=2")
    shutil.rmtree(runs)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    yield Path(shutil.copytree(finished, tmp_path / "runs" / "test"))
    shutil.rmtree(tmp_path / "runs")


def contents(run: Path) -> dict[str, bytes]:
    """What a start that is refused must leave as it is."""
    found = {}
    for path in run.rglob("*"):
        if path.is_file() and path.name not in {"lock", "log.txt", "failure.txt"}:
            with open(path, "rb") as file:  # not by `whole`, which a test has fail
                found[str(path.relative_to(run))] = file.read()
    return found


def refused(data: Path, run: Path, *options: str) -> Reported:
    """How a start ends that changes nothing."""
    before = contents(run)
    with pytest.raises(Reported) as caught:
        train_here(data, run.parent, *options)
    assert contents(run) == before
    return caught.value


@pytest.mark.parametrize("error", REFUSALS[:3], ids=repr)
def test_a_run_ends_when_its_newest_cannot_be_read_and_resumes_when_it_can(
    small_data, run, monkeypatch, error
):
    with monkeypatch.context() as now:
        refuse(now, "step-000000007.pt", error, times=9)
        ended = refused(small_data, run)
    assert ended.code == ExitCode.FAILED
    assert "step-000000007.pt cannot be read" in ended.message
    assert "cannot be read" in (run / "failure.txt").read_text()
    train_here(small_data, run.parent, "--schedule.epochs=1.2")
    assert "step-000000007.pt at step 7" in (run / "log.txt").read_text()


def test_a_run_ends_when_its_folder_of_checkpoints_cannot_be_read(small_data, run, monkeypatch):
    real = os.listdir

    def listdir(path="."):
        if Path(path).name == "checkpoints":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    with monkeypatch.context() as now:
        now.setattr(os, "listdir", listdir)
        with pytest.raises(Reported) as ended:
            train_here(small_data, run.parent)
    assert ended.value.code == ExitCode.FAILED
    assert f"cannot use {run}/checkpoints: Input/output error" in ended.value.message
    assert newest_checkpoint(run)["step"] == 7


def test_without_its_steps_a_run_says_how_to_go_on_from_the_best(small_data, run, finished):
    for path in (run / "checkpoints").glob("step-*.pt"):
        path.unlink()
    best = run / "checkpoints" / "best.pt"
    ended = refused(small_data, run)
    assert ended.code == ExitCode.WRONG_INPUT
    assert "has lost its checkpoints step-*.pt and still holds best.pt" in ended.message
    assert f"--resume {best}" in ended.message and "another run.name" in ended.message
    (run / "metrics.jsonl").rename(run / "kept")
    assert "has lost its checkpoints" in refused(small_data, run).message
    assert "already holds a run" in refused(small_data, run, "--resume=none").message
    (run / "kept").rename(run / "metrics.jsonl")
    train_here(small_data, run.parent, f"--resume={best}")
    assert state_differences(run, finished) == []
    train_here(small_data, run.parent)  # stands on its own again


def test_without_any_checkpoint_a_run_that_had_one_does_not_start_from_scratch(small_data, run):
    shutil.rmtree(run / "checkpoints")
    ended = refused(small_data, run)
    assert ended.code == ExitCode.WRONG_INPUT
    assert "metrics.jsonl says that the run had a checkpoint at step 7" in ended.message
    assert "put it back, or choose another run.name" in ended.message


def test_a_run_that_was_killed_before_its_first_save_starts_again(small_data, run):
    shutil.rmtree(run / "checkpoints")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    early = [line for line in lines if line["event"] in ("start", "train")]
    text = "".join(json.dumps(line) + "\n" for line in early)
    (run / "metrics.jsonl").write_text(text)
    train_here(small_data, run.parent)
    assert newest_checkpoint(run)["step"] == 7


def test_a_run_that_was_to_begin_with_anothers_checkpoint_does_not_begin_without(
    small_data, finished, tmp_path
):
    other = finished / "checkpoints" / "step-000000004.pt"
    fork = tmp_path / "fork"
    fork.mkdir()
    (fork / "origin.txt").write_text(str(other))  # killed before it had its copy
    ended = refused(small_data, fork, "--run.name=fork")
    assert ended.code == ExitCode.WRONG_INPUT
    assert f"was to begin with {other} and has no checkpoint yet; give --resume" in ended.message
    train_here(small_data, tmp_path, "--run.name=fork", f"--resume={other}")
    assert state_differences(fork, finished) == []


def test_to_go_back_to_an_earlier_checkpoint_keeps_the_later_ones(small_data, run, finished):
    early = run / "checkpoints" / "step-000000004.pt"
    train_here(small_data, run.parent, f"--resume={early}")
    assert state_differences(run, finished) == []
    later = sorted(path.name for path in (run / "checkpoints").glob("later-*"))
    assert later == ["later-step-000000006.pt", "later-step-000000007.pt"]
