"""Checkpoints: written atomically, verified, never code, and of this very run."""

import json
import logging
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_process import train_here
from run_files import newest_checkpoint, state_differences

from pipeline.config import Config, later_defaults, setting_names
from pipeline.config.reading import load_config
from pipeline.system.failure import ExitCode, Reported
from pipeline.train import validation
from pipeline.train.checkpoint import (
    DamagedCheckpoint,
    read_verified,
    require_same_run,
    write_atomically,
)
from pipeline.train.saving import CheckpointFolder, SaveError
from pipeline.train.state import compared, fingerprint
from pipeline.train.trainer import Trainer


def content(step: int = 0) -> dict:
    weights = torch.arange(20_000, dtype=torch.float32).reshape(100, 20, 5, 2)
    return {
        "format": 1,
        "step": step,
        "model": {"weight": weights.to(memory_format=torch.channels_last), "n": torch.tensor(3)},
        "history": [{"top1": 0.5}],
        "classes": ["a", "b"],
    }


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", keep=3)


def save_steps(folder: CheckpointFolder, *steps: int) -> list[Path]:
    return [folder.save(step, content(step)) for step in steps]


def damage(path: Path) -> None:
    """Flips one bit in the middle of the largest record, in a copy that shares no other name."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    broken = bytearray(path.read_bytes())
    broken[record.header_offset + record.file_size // 2] ^= 1
    path.unlink()
    path.write_bytes(broken)


def test_what_is_written_is_read_back_with_bits_types_and_strides(tmp_path):
    path = tmp_path / "a.pt"
    write_atomically(path, content())
    weight = content()["model"]["weight"]
    for found in (read_verified(path), torch.load(path, weights_only=True)):  # plain torch, too
        assert torch.equal(found["model"]["weight"], weight)
        assert found["model"]["weight"].stride() == weight.stride()
        assert {**found, "model": None} == {**content(), "model": None}
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("step", [4, 5])
def test_a_write_that_the_disk_refuses_leaves_what_was_there(folder, monkeypatch, step):
    (path,) = save_steps(folder, 4)
    old = path.read_bytes()

    def fail(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", fail)
    refused = (
        rf"step-00000000{step}.pt cannot be written: Read-only file system .*; the last good one "
        "is that of step 4; have that folder take files again and start again"
    )
    with pytest.raises(SaveError, match=refused):
        folder.save(step, content(5))
    assert path.read_bytes() == old
    assert folder.steps() == [4]
    assert not list(folder.folder.glob(".partial-*"))


def test_one_flipped_bit_inside_a_tensor_is_found(tmp_path):
    path = tmp_path / "a.pt"
    write_atomically(path, content())
    damage(path)
    assert torch.load(path, weights_only=True)["step"] == 0  # torch alone does not notice
    with pytest.raises(
        DamagedCheckpoint, match="a.pt is damaged: its SHA-256 is wrong; give another"
    ):
        read_verified(path)


@pytest.mark.parametrize("kept", [0, 1, 1000, 0.5, 0.99, -1])
def test_a_truncated_file_is_found(tmp_path, kept):
    path = tmp_path / "a.pt"
    write_atomically(path, content())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(DamagedCheckpoint, match=r"a\.pt is damaged"):
        read_verified(path)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            b"<html>404</html>",
            "a.pt is no checkpoint: it begins with '<html>404</html>', and a checkpoint is a zip "
            "file; give the path of a .pt file of a run",
        ),
        (b"base: demo.yaml\nrun:\n", "a.pt is no checkpoint: it begins with 'base: demo.yaml', "),
        (
            b"\x89PNG\r\n\x1a\nxx",
            "no checkpoint: it begins with the bytes 89 50 4e 47 0d 0a 1a 0a,",
        ),
        (b"", "a.pt is damaged: it is empty; give another copy of it, or an earlier checkpoint"),
        (bytes(4096), "a.pt is damaged: its end is missing; give another copy"),
        ({"state_dict": {}}, "has format None, this version reads 1"),
        ([1, 2], "has format 'list', this version reads 1"),
        (None, r"a\.pt does not exist; give the path"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, stored, message):
    path = tmp_path / "a.pt"
    if isinstance(stored, bytes):
        path.write_bytes(stored)
    elif stored is not None:
        torch.save(stored, path)
    with pytest.raises(ValueError, match=message):
        read_verified(path)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_code_in_a_file_is_not_run(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "a.pt"
    hostile = {**content(), "extra": Hostile(mark)}
    for write in (
        lambda: torch.save(hostile, path),
        lambda: path.write_bytes(pickle.dumps(hostile)),
    ):
        write()
        with pytest.raises(ValueError, match="another program: it holds pickled objects of posix"):
            read_verified(path)
    assert not mark.exists()
    torch.save(hostile, path)
    torch.load(path, weights_only=False)
    assert mark.exists()  # the file does hold what it should


def test_the_newest_whole_one_is_used_and_a_damaged_one_reported(folder, caplog):
    assert folder.latest() is None
    paths = save_steps(folder, 3, 6, 9)
    (folder.folder / ".partial-0a1b2c3d-step-000000012.pt").write_bytes(b"half")
    (folder.folder / "step-12.pt").write_bytes(b"a name of another program")
    damage(paths[2])
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        path, found = folder.latest()
    assert (path, found["step"]) == (paths[1], 6)
    assert "step-000000009.pt is damaged" in caplog.text
    assert "the one before it is tried" in caplog.text
    folder.set_aside_after(3)
    assert folder.steps() == [3]
    damage(paths[0])
    caplog.clear()
    with pytest.raises(DamagedCheckpoint) as refused:
        folder.latest()  # nothing starts over by itself
    assert "is tried" not in caplog.text  # there is none before it
    assert str(refused.value) == (
        f"the only checkpoint step-*.pt in {folder.folder} is damaged; resume from "
        f"later-step-000000006.pt, which is whole, by --resume {folder.folder}/"
        "later-step-000000006.pt, or choose another run.name to start from scratch"
    )


@pytest.mark.parametrize("best", ["whole", "damaged", "none"])
def test_a_whole_best_is_offered_where_every_other_is_damaged(folder, best):
    paths = save_steps(folder, 3, 6)
    if best != "none":
        folder.save(6, content(6))
        folder.best.write_bytes(paths[0].read_bytes())
    if best == "damaged":
        damage(folder.best)
    damage(paths[0])
    paths[1].write_bytes(b"<html>")  # what is no checkpoint must not end the search
    with pytest.raises(DamagedCheckpoint, match=r"none of the 2 checkpoints step-") as refused:
        folder.latest()
    offers = f"--resume {folder.best}, or choose another run.name" in str(refused.value)
    assert offers == (best == "whole")
    assert "give --resume the path of another checkpoint, or" in str(refused.value) or offers
    assert "remove" not in str(refused.value)


def test_the_newest_and_the_best_are_kept(folder):
    for step in range(1, 7):
        folder.save(step, content(step), best=step in (1, 2))
    assert folder.steps() == [4, 5, 6]
    assert read_verified(folder.best)["step"] == 2
    names = {"step-000000004.pt", "step-000000005.pt", "step-000000006.pt", "best.pt"}
    assert set(os.listdir(folder.folder)) == names


def test_saving_again_at_a_step_does_not_change_the_best_of_it(folder):
    folder.save(4, content(4), best=True)
    folder.save(4, {**content(4), "history": []})
    assert read_verified(folder.best)["history"] == [{"top1": 0.5}]
    assert read_verified(folder.path(4))["history"] == []


# What a checkpoint must share with the run, and what may change under way.

FREE = {
    "data.root", "data.dataset", "data.cache_dir", "data.local_batch_size", "data.decode",
    "data.threads", "data.prefetch_batches", "data.hw_decoder_load", "data.preallocate",
    "data.device_padding_bytes", "data.host_padding_bytes", "data.bad_images", "data.max_excluded",
    "data.exclude", "model.norm", "model.compile", "model.graphs", "schedule.epochs",
    "schedule.steps", "run.name", "run.dir", "run.device", "run.threads", "run.autotune",
    "run.log_every_steps", "run.loggers", "run.sums",
    "run.checkpoint_every_steps", "run.checkpoint_every_sec", "run.keep_checkpoints",
    "run.start_timeout_sec", "run.step_timeout_sec", "run.expect_top1", "profile", "resume",
    "init",  # whose digest is compared (`train.init`)
}  # fmt: skip


def facts(*argv: str) -> tuple[Config, dict]:
    """A configuration, and what a checkpoint keeps of it."""
    stored = [
        "--config=configs/demo.yaml", "--data.global_batch_size=64", "--data.area=[0.35,1]",
        "--optim.base_lr=0.2", "--schedule.epochs=13", "--schedule.drop_epochs=[8,11]",
    ]  # fmt: skip
    config = load_config([*stored, *argv], "", "")
    return config, fingerprint(config, {"train": "aaaa", "val": "bbbb"})


def test_every_setting_is_either_fixed_or_free():
    fixed = {name for name in facts()[1] if "." in name} | later_defaults().keys()
    assert fixed | FREE == set(setting_names())
    assert fixed & FREE == set()


def test_another_run_is_refused_with_both_values_of_every_difference():
    _, stored = facts()
    del stored["random_scheme"]
    config, now = facts(
        "--model.depth=34", "--model.zero_init_last_norm=true", "--run.seed=5",
        "--data.global_batch_size=32", "--data.area=[0.08,1]", "--data.output=uint8",
        "--schedule.drop_epochs=[9]", "--optim.base_lr=0.4", "--data.threads=3",
    )  # fmt: skip
    now["data hash of val"] = "cccc"
    with pytest.raises(ValueError) as error:
        require_same_run(Path("a.pt"), stored, compared(now, config))
    start, _, rest = str(error.value).partition(" (")
    differences, _, end = rest.partition("); ")
    assert start == "checkpoint a.pt belongs to another run"
    assert end == "set these back, or choose another run.name"
    assert set(differences.split("; ")) == {
        f"{name}: {before} in the checkpoint, {after} now"
        for name, before, after in (
            ("random_scheme", "(not stored)", now["random_scheme"]),
            ("data hash of val", "bbbb", "cccc"), ("model.depth", "18", "34"),
            ("model.zero_init_last_norm", "False", "True"), ("run.seed", "0", "5"),
            ("data.global_batch_size", "64", "32"), ("data.output", "float32", "uint8"),
            ("data.area", "[0.35, 1.0]", "[0.08, 1.0]"), ("optim.base_lr", "0.2", "0.4"),
            ("schedule.drop_epochs", "[8.0, 11.0]", "[9.0]"),
        )
    }  # fmt: skip


# The same in a real run: 7 steps, checkpoints 4, 6 and 7, the last one the best.


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    yield train_here(small_data, runs, "--run.checkpoint_every_steps=2", "--resume=none")
    shutil.rmtree(runs)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run in another folder, which may be changed; files are links."""
    run = tmp_path / "runs" / "test"
    not_shared = shutil.ignore_patterns("lock", "log.txt", "metrics.jsonl")
    shutil.copytree(finished, run, copy_function=os.link, ignore=not_shared)
    shutil.copy(finished / "metrics.jsonl", run)
    yield run
    shutil.rmtree(run)


def log_of(run: Path) -> str:
    return (run / "log.txt").read_text()


def test_a_run_leaves_its_newest_checkpoints_and_the_best(finished):
    folder = CheckpointFolder(finished / "checkpoints", 3)
    assert folder.steps() == [4, 6, 7]
    assert read_verified(folder.best)["step"] == 7
    found = torch.load(folder.path(7), weights_only=True)  # plain torch is enough
    assert (found["position"], found["history"][0]["images"], len(found["classes"])) == (56, 30, 10)
    assert found["model"]["conv1.weight"].shape == (16, 3, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume=none"], "already holds a run and --resume is none"),
        (["--resume=OTHER/none.pt"], r"none\.pt does not exist"),
        (["--resume=OTHER/step-000000004.pt"], "already holds another run than --resume"),
        (
            ["--run.name=new", "--resume=OTHER/step-000000004.pt", "--run.seed=9"],
            r"run\.seed: 0 in the checkpoint, 9 now",
        ),
    ],
)
def test_a_checkpoint_that_is_not_of_the_run_is_refused(
    small_data, finished, copied, options, message
):
    other = str(finished / "checkpoints")
    with pytest.raises(Reported, match=message) as error:
        train_here(small_data, copied.parent, *(o.replace("OTHER", other) for o in options))
    assert error.value.code == ExitCode.WRONG_INPUT


def test_a_finished_run_says_so_and_changes_nothing(small_data, copied):
    before = (copied / "metrics.jsonl").read_bytes()
    train_here(small_data, copied.parent)
    assert "is finished: top-1" in log_of(copied)
    assert (copied / "metrics.jsonl").read_bytes() == before


def test_a_damaged_newest_is_reported_and_the_run_goes_on_with_other_free_settings(
    small_data, copied
):
    damage(copied / "checkpoints" / "step-000000007.pt")
    train_here(
        small_data, copied.parent, "--data.local_batch_size=4", "--data.threads=2",
        "--schedule.epochs=1.2", "--run.log_every_steps=1",
    )  # fmt: skip
    log = log_of(copied)
    assert "step-000000007.pt is damaged: its SHA-256 is wrong" in log
    assert "resuming from" in log
    assert "step-000000006.pt at step 6" in log
    assert CheckpointFolder(copied / "checkpoints", 3).steps()[-1] == 8
    assert "finished: top-1" in log


def test_a_run_that_began_with_anothers_checkpoint_stands_on_its_own(
    small_data, finished, tmp_path
):
    other = finished / "checkpoints" / "step-000000004.pt"
    run = train_here(small_data, tmp_path, "--run.name=fork", f"--resume={other}")
    CheckpointFolder(run / "checkpoints", 3).set_aside_after(4)  # killed before its first
    train_here(small_data, tmp_path, "--run.name=fork", f"--resume={other}")  # the same command
    log = log_of(run)
    assert log.count("at step 4") == 2
    assert f"resuming from {other} at step 4" in log
    assert newest_checkpoint(run)["step"] == 7
    assert state_differences(run, finished) == []


def test_what_a_kill_right_after_the_last_save_prevented_is_repaired(small_data, copied):
    (copied / "checkpoints" / "best.pt").unlink()
    lines = (copied / "metrics.jsonl").read_text().splitlines()
    (copied / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    train_here(small_data, copied.parent)
    assert read_verified(copied / "checkpoints" / "best.pt")["step"] == 7
    *repaired, start, done = (copied / "metrics.jsonl").read_text().splitlines()
    assert repaired == lines[:-1]
    assert json.loads(start)["event"] == "start"
    assert json.loads(done) | {"time": 0} == json.loads(lines[-1]) | {"time": 0}


def test_weights_that_are_not_finite_are_never_written(small_data, tmp_path, monkeypatch):
    real = Trainer.train_step

    def poison(self, *rest):
        norm = real(self, *rest)
        if self.state.step == 3:  # as an infinite gradient after a finite loss would
            with torch.no_grad():
                self.state.model.conv1.weight[0] = float("inf")
        return norm

    monkeypatch.setattr(Trainer, "train_step", poison)
    with pytest.raises(Reported, match=r"conv1\.weight is not finite before step 4") as error:
        train_here(small_data, tmp_path, "--run.checkpoint_every_steps=1")
    assert error.value.code == ExitCode.FAILED
    run = tmp_path / "test"
    assert CheckpointFolder(run / "checkpoints", 3).steps() == [1, 2, 3]
    assert "conv1.weight is not finite" in (run / "failure.txt").read_text()


@pytest.mark.parametrize("of_average", [False, True])
def test_a_validation_loss_that_is_not_finite_ends_the_run_with_a_word(
    small_data, tmp_path, monkeypatch, of_average
):
    real, options = validation.validate, ["--optim.ema_decay=0.9"] if of_average else []

    def validate(*given):
        result = real(*given)
        has_analysis = given[-1] is not None
        return result if of_average == has_analysis else replace(result, loss=float("nan"))

    monkeypatch.setattr(validation, "validate", validate)
    with pytest.raises(Reported, match="the validation loss is nan before step 7") as error:
        train_here(small_data, tmp_path, *options)
    assert error.value.code == ExitCode.FAILED
