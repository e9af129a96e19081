"""Runs on a data set with bad files in it, under data.bad_images=exclude."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
from jobs import copy_data
from one_process import train_here
from run_files import differences, metrics, newest_checkpoint, state_differences

from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import epoch_permutation
from pipeline.system.failure import Reported
from pipeline.train.checkpoint import read_verified

# Micro-batches of 2: two to a step on each of two ranks, four on one. Two epochs.
EXCLUDE = (
    "--data.bad_images=exclude", "--data.local_batch_size=2", "--schedule.epochs=2",
    "--run.keep_checkpoints=20", "--run.checkpoint_every_steps=1",
)  # fmt: skip
STEP = 8
TRAIN_POSITIONS = (3, 22)
"""Where in the first epoch of seed 0 the bad training images stand: in the first step, second
micro-batch of rank 0; and in the third step."""
BAD_VAL = (13, 14, 29)
"""Two neighbours, and the last one, which stands beside padding."""


@dataclass(frozen=True)
class Spoilt:
    """A data set with two bad training images and three bad validation images."""

    root: Path
    train: list[list[int]]
    """The bad training images as a checkpoint holds them: image, position from which it is
    excluded, position where it failed."""


@pytest.fixture(scope="module")
def spoilt(small_data, tmp_path_factory):
    """Cut in the middle: the header stays readable."""
    root = copy_data(small_data, tmp_path_factory.mktemp("spoilt") / "data")
    train_set = open_manifest(root, "train")
    val_set = open_manifest(root, "val", classes=train_set.classes)
    order = epoch_permutation(0, 0, len(train_set))
    images = [int(order[position]) for position in TRAIN_POSITIONS]
    for path in [*map(train_set.path, images), *map(val_set.path, BAD_VAL)]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    rows = [
        [image, (position // STEP + 1) * STEP, position]
        for image, position in zip(images, TRAIN_POSITIONS, strict=True)
    ]
    return Spoilt(root, sorted(rows))


@pytest.fixture(scope="module")
def two_ranks(spoilt, tmp_path_factory):
    """Two ranks: (folder of the run, what it said)."""
    runs = tmp_path_factory.mktemp("two")
    argv = [*jobs.train(spoilt.root, runs), "--schedule.drop_epochs=[]"]
    ended = jobs.run([*argv, *EXCLUDE], ranks=2)
    assert ended.codes == [0, 0], ended.text
    return runs / "test", ended.text


def test_a_run_goes_on_without_its_bad_images_and_keeps_record(two_ranks, spoilt):
    run, said = two_ranks
    content = newest_checkpoint(run)
    assert content["excluded"] == {"train": spoilt.train, "val": list(BAD_VAL)}
    lines = metrics(run)
    assert [line["excluded"] for line in lines if line["event"] == "train"][-1] == 2
    vals = [line for line in lines if line["event"] == "val"]
    assert [(val["images"], val["excluded"]) for val in vals] == [(30, 3)] * 2
    for position in TRAIN_POSITIONS:
        assert f"the run goes on without it in train at position {position} (" in said
    assert said.count("the run goes on without it in val (5 excluded of at most 100)") == 3


def test_one_rank_and_two_exclude_the_same_and_end_with_the_same_weights(spoilt, tmp_path):
    # One micro-batch a step on each of two ranks, two on one: a sum of two has no order.
    four = (*EXCLUDE, "--data.local_batch_size=4", "--schedule.drop_epochs=[]")
    together = jobs.run([*jobs.train(spoilt.root, tmp_path / "two"), *four], ranks=2)
    assert together.codes == [0, 0], together.text
    alone = newest_checkpoint(train_here(spoilt.root, tmp_path / "one", *four))
    two = newest_checkpoint(tmp_path / "two" / "test")
    for name in ("excluded", "momentum"):
        assert differences(alone[name], two[name]) == []


def test_a_run_stopped_after_an_exclusion_goes_on_with_the_same_bits(two_ranks, spoilt, tmp_path):
    early = two_ranks[0] / "checkpoints" / "step-000000002.pt"
    excluded = read_verified(early)["excluded"]["train"]
    assert len(excluded) == 1, "after the first bad image and before the second"
    argv = [*jobs.train(spoilt.root, tmp_path), "--schedule.drop_epochs=[]", f"--resume={early}"]
    ended = jobs.run([*argv, *EXCLUDE], ranks=2)
    assert ended.codes == [0, 0], ended.text
    assert state_differences(tmp_path / "test", two_ranks[0]) == []


def test_more_bad_images_than_allowed_end_the_run(spoilt, tmp_path, caplog):
    with pytest.raises(Reported, match=r"2 images are excluded and data.max_excluded=1"):
        train_here(spoilt.root, tmp_path, *EXCLUDE, "--data.max_excluded=1")


def test_a_validation_set_of_bad_files_ends_the_run_and_does_not_hang(spoilt, tmp_path):
    root = copy_data(spoilt.root, tmp_path / "data")
    for path in (root / "val").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:200] + b"\xff\xd9")
    with pytest.raises(Reported, match=r"images are excluded and data.max_excluded=5"):
        train_here(root, tmp_path, *EXCLUDE, "--data.max_excluded=5", "--schedule.epochs=1")


def test_a_file_that_was_changed_after_the_scan_is_not_excluded(spoilt, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(spoilt.root, root, ignore=shutil.ignore_patterns(".trainyard"))
    train_set = open_manifest(root, "train")
    good = train_set.path(int(epoch_permutation(0, 0, len(train_set))[1]))
    good.write_bytes(good.read_bytes() + b"more")
    with pytest.raises(Reported, match="put back the file that was scanned"):
        train_here(root, tmp_path, *EXCLUDE)


def test_evaluate_counts_what_the_training_counted(two_ranks, spoilt):
    checkpoint = two_ranks[0] / "checkpoints" / "best.pt"
    command = ["-m", "pipeline.evaluate", "--checkpoint", str(checkpoint)]
    ended = jobs.run([*command, f"--data.root={spoilt.root}"])
    vals = [line for line in metrics(two_ranks[0]) if line["event"] == "val"]
    val = max(reversed(vals), key=lambda line: line["top1"])
    assert ended.codes == [0], ended.text
    assert f"({round(val['top1'] * 30)} of 30)" in ended.text
    assert f"loss {val['loss']:.4f}" in ended.text


@pytest.fixture(scope="module")
def exclusion_list(spoilt, tmp_path_factory):
    """What `prepare verify` writes for the data set."""
    report = tmp_path_factory.mktemp("verify") / "verify.jsonl"
    root = f"--root={spoilt.root}"
    ended = jobs.run(["-m", "pipeline.prepare", "verify", root, f"--report={report}"])
    assert ended.codes == [2], ended.text
    return report.with_suffix(".exclude.json")


def test_a_run_with_the_list_of_verify_meets_no_bad_image(exclusion_list, spoilt, tmp_path, caplog):
    run = train_here(spoilt.root, tmp_path, f"--data.exclude={exclusion_list}")
    excluded = newest_checkpoint(run)["excluded"]
    assert excluded["train"] == [[image, 0] for image, _, _ in spoilt.train]
    assert excluded["val"] == list(BAD_VAL)
    assert "cannot be used" not in (run / "log.txt").read_text()
    # Given again, at the next start, it changes nothing.
    again = train_here(spoilt.root, tmp_path, f"--data.exclude={exclusion_list}")
    assert newest_checkpoint(again)["excluded"] == excluded


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read: No such file"),
        ("{", "is not an exclusion list of python -m pipeline.prepare verify"),
        ('{"splits": {"train": {"data_hash": "0123", "images": [1]}}}', "hash of train 0123 there"),
        (
            '{"version": 1, "splits": {"train": {"data_hash": "HASH", "images": [50]}}}',
            "is not an ex",
        ),
        ('{"version": 2, "splits": {}}', "is not an exclusion list"),
    ],
)
def test_a_list_of_no_use_is_refused(small_data, tmp_path, content, message):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content.replace("HASH", open_manifest(small_data, "train").digest))
    with pytest.raises(Reported, match=message):
        train_here(small_data, tmp_path, f"--data.exclude={path}")
