"""Bad input: one sentence, exit code 2, and nothing lost."""

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import jobs
import pytest
from jobs import copy_data
from one_process import evaluate_here, train_here

from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import epoch_permutation
from pipeline.system.failure import ExitCode, Reported
from pipeline.train.events import read_metrics
from pipeline.train.saving import CheckpointFolder


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """A run of 7 steps with checkpoints 6 and 7."""
    runs = tmp_path_factory.mktemp("finished")
    options = ("--run.checkpoint_every_steps=6", "--run.keep_checkpoints=2")
    yield train_here(small_data, runs, *options)
    shutil.rmtree(runs)


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished run, to be started again."""
    run = tmp_path / "runs" / "test"
    not_shared = shutil.ignore_patterns("lock", "log.txt", "metrics.jsonl")
    shutil.copytree(finished, run, copy_function=os.link, ignore=not_shared)
    return run


def assert_refused(data: Path, runs: Path, *options: str, parts: Sequence[str]) -> None:
    """A training ends with code 2, and `parts` in its sentence."""
    with pytest.raises(Reported) as refused:
        train_here(data, runs, *options)
    assert refused.value.code == ExitCode.WRONG_INPUT
    for part in parts:
        assert part in refused.value.message


def one_class_more(root: Path) -> None:
    (root / "val/ring").rename(root / "val/zebra")


def flat(root: Path) -> None:
    for folder in [path for path in (root / "val").iterdir() if path.is_dir()]:
        for path in folder.iterdir():
            path.rename(root / "val" / f"{folder.name}-{path.name}")
        folder.rmdir()


def no_images(root: Path) -> None:
    for path in (root / "train").rglob("*.JPEG"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (one_class_more, ["val has 1 class folder(s)", "zebra"]),
        (flat, ["val holds 30 images but no class folders", "val/<class>/"]),
        (no_images, ["train holds no images", "set data.root"]),
    ],
)
def test_data_that_cannot_be_trained_on_are_told_what_to_become(
    small_data, tmp_path, change, parts
):
    root = copy_data(small_data, tmp_path / "data")
    change(root)
    assert_refused(root, tmp_path / "runs", parts=parts)


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("--model.depth=14", ["(model.depth: 8 in the checkpoint, 14 now)"]),
        ("--run.seed=12345", ["(run.seed: 0 in the checkpoint, 12345 now)"]),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_with_both_values(
    small_data, again, option, parts
):
    parts = ["step-000000007.pt belongs to another run", *parts]
    assert_refused(small_data, again.parent, option, parts=parts)


def test_the_checkpoint_of_other_data_is_refused_with_both_hashes(small_data, tmp_path, again):
    digest = open_manifest(small_data, "train").digest
    root = copy_data(small_data, tmp_path / "data")
    next((root / "train" / "ring").iterdir()).unlink()
    parts = [f"(data hash of train: {digest} in the checkpoint, ", " now)"]
    assert_refused(root, again.parent, parts=parts)


def test_damaged_checkpoints_do_not_start_a_run_from_scratch(small_data, again):
    for path in (again / "checkpoints").glob("step-*.pt"):
        half = path.read_bytes()[: path.stat().st_size // 2]
        path.unlink()
        path.write_bytes(half)
    best = again / "checkpoints" / "best.pt"  # a copy, which is whole
    parts = ["none of the 2 checkpoints step-", "is whole", f"by --resume {best}, or choose"]
    assert_refused(small_data, again.parent, parts=parts)
    for step in (6, 7):
        assert f"step-00000000{step}.pt is damaged" in (again / "log.txt").read_text()


def test_evaluate_refuses_a_damaged_checkpoint(finished, tmp_path):
    path = tmp_path / "half.pt"
    path.write_bytes((finished / "checkpoints" / "best.pt").read_bytes()[:100_000])
    with pytest.raises(Reported, match=r"half\.pt is damaged: "):
        evaluate_here("--checkpoint", str(path))


def assert_answered(job: jobs.Ranks, *parts: str) -> str:
    """All ranks end with code 2 and one line of error, which holds `parts`; no traceback."""
    assert set(job.codes) == {2}, job.text
    (line,) = [line for line in job.outputs[0].splitlines() if line.startswith("error:")]
    for part in parts:
        assert part in line
    assert "Traceback" not in job.text
    return line


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("--run.seed=0", ["/nowhere does not exist", "python -m pipeline.prepare demo"]),
        ("--model.depht=18", ["no setting --model.depht; did you mean --model.depth?"]),
    ],
)
def test_two_ranks_say_once_what_is_wrong(tmp_path, option, parts):
    job = jobs.run(jobs.train(tmp_path / "nowhere", tmp_path / "runs", option), ranks=2)
    line = assert_answered(job, *parts)
    # Before the ranks connect each knows of itself only; a launcher ends the others first.
    assert job.outputs[1].strip() in ("", line.replace("error: ", "error: rank 1: ", 1))


def test_a_run_in_use_is_left_alone_and_its_holder_named(small_data, tmp_path):
    run = tmp_path / "test"
    run.mkdir()
    with open(run / "lock", "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        who = {"process": 4711, "host": "node9", "slurm_job": None, "since": "2026-11-29 08:00:00"}
        holder.write(json.dumps(who))
        holder.flush()
        message = "is in use by process 4711 on node9, since .*; wait for it or choose another"
        with pytest.raises(Reported, match=message):
            train_here(small_data, tmp_path)
    assert sorted(path.name for path in run.iterdir()) == ["lock"]


@pytest.mark.parametrize(
    ("change", "local_batch_size", "reason", "fix"),
    [
        # Met by the decoder, in the last of two micro-batches of its rank.
        (
            lambda good: good[: len(good) // 2], 2, "cannot be decoded",
            "continue without it by data.bad_images=exclude, or put a good copy there, which",
        ),
        # Met while it is read, changed since it was scanned.
        (
            lambda good: good[:100], 4, "has 100 bytes, the image index recorded",
            "put back the file that was scanned and start again",
        ),
    ],
    ids=["truncated", "cut after the scan"],
)  # fmt: skip
def test_a_bad_file_met_while_training_is_named_and_ends_both_ranks(
    small_data, tmp_path, change, local_batch_size, reason, fix
):
    step, rank = 3, 1
    position = 8 * step + 7  # the last image of the step: rank 1's
    root = copy_data(small_data, tmp_path / "data")
    image = epoch_permutation(seed=0, epoch=0, num_images=50)[position]
    bad = root / open_manifest(small_data, "train").path(image).relative_to(small_data)
    if "recorded" in reason:
        open_manifest(root, "train")
    bad.write_bytes(change(bad.read_bytes()))

    options = ["--run.checkpoint_every_steps=1", f"--data.local_batch_size={local_batch_size}"]
    job = jobs.run(jobs.train(root, tmp_path / "runs", *options), ranks=2)

    line = assert_answered(job, f"the image {bad} cannot be used", reason)
    assert f"(met at step {step} by rank {rank}); {fix}" in line
    assert line in job.outputs[0]
    run = tmp_path / "runs" / "test"
    assert line == (run / "failure.txt").read_text().splitlines()[0]
    path, content = CheckpointFolder(run / "checkpoints", 3).latest()
    assert (path.name, content["step"], content["position"]) == ("step-000000003.pt", 3, 24)
    lines = [(line["event"], line["step"]) for line in read_metrics(run / "metrics.jsonl")]
    assert lines[1:] == [("train", 3)]
    shutil.rmtree(run)
