"""Runs on a data set with bad files in it, under data.bad_images=exclude."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
from jobs import copy_data
from one_process import train_here
from run_files import differences, metrics, newest_checkpoint

from pipeline.data.manifest import open_manifest
from pipeline.data.order import epoch_permutation
from pipeline.failure import Reported

EXCLUDE = ("--data.bad_images=exclude", "--data.local_batch_size=4")
TRAIN_POSITIONS = (5, 22)
"""Where in the first epoch of seed 0 the bad training images stand: in the first step, second
micro-batch; and in the third step."""
BAD_VAL = 13


@dataclass(frozen=True)
class Spoilt:
    """A data set with two bad training images and a bad validation image."""

    root: Path
    train: list[tuple[int, int]]
    """(image, position) of the bad training images, by image."""


@pytest.fixture(scope="module")
def spoilt(small_data, tmp_path_factory):
    """Cut in the middle: the header stays readable."""
    root = copy_data(small_data, tmp_path_factory.mktemp("spoilt") / "data")
    train_set = open_manifest(root, "train")
    val_set = open_manifest(root, "val", classes=train_set.classes)
    order = epoch_permutation(0, 0, len(train_set))
    images = [int(order[position]) for position in TRAIN_POSITIONS]
    for path in [*map(train_set.path, images), val_set.path(BAD_VAL)]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    return Spoilt(root, sorted(zip(images, TRAIN_POSITIONS, strict=True)))


@pytest.fixture(scope="module")
def two_ranks(spoilt, tmp_path_factory):
    """An epoch on two ranks: (folder of the run, what it said)."""
    runs = tmp_path_factory.mktemp("two")
    argv = [*jobs.train(spoilt.root, runs), "--schedule.epochs=1", "--schedule.drop_epochs=[]"]
    ended = jobs.run([*argv, *EXCLUDE, "--run.checkpoint_every_steps=2"], ranks=2)
    assert ended.codes == [0, 0], ended.text
    return runs / "test", ended.text


def test_a_run_goes_on_without_its_bad_images_and_keeps_record(two_ranks, spoilt):
    run, said = two_ranks
    content = newest_checkpoint(run)
    assert [tuple(pair) for pair in content["excluded"]["train"]] == spoilt.train
    assert content["excluded"]["val"] == [BAD_VAL]
    lines = metrics(run)
    assert [line["excluded"] for line in lines if line["event"] == "train"][-1] == 2
    (val,) = (line for line in lines if line["event"] == "val")
    assert (val["images"], val["excluded"]) == (30, 1)
    for position in TRAIN_POSITIONS:
        assert f"the run goes on without it from position {position} of train on" in said
    assert f"the run goes on without it from position {BAD_VAL} of val on (3 excluded" in said


def test_one_rank_with_accumulation_excludes_the_same_and_ends_with_the_same_weights(
    two_ranks, spoilt, tmp_path
):
    alone = newest_checkpoint(train_here(spoilt.root, tmp_path, *EXCLUDE))
    together = newest_checkpoint(two_ranks[0])
    for name in ("excluded", "momentum"):
        assert differences(alone[name], together[name]) == []


def test_a_run_stopped_after_an_exclusion_goes_on_with_the_same_images(two_ranks, spoilt, tmp_path):
    # From the checkpoint after the first bad image and before the second.
    early = sorted((two_ranks[0] / "checkpoints").glob("step-*.pt"))[0]
    run = train_here(spoilt.root, tmp_path, *EXCLUDE, f"--resume={early}")
    again, straight = newest_checkpoint(run), newest_checkpoint(two_ranks[0])
    for name in ("excluded", "momentum"):
        assert differences(again[name], straight[name]) == []


def test_more_bad_images_than_allowed_end_the_run(spoilt, tmp_path, caplog):
    with pytest.raises(Reported, match=r"2 images are excluded and data.max_excluded=1"):
        train_here(spoilt.root, tmp_path, *EXCLUDE, "--data.max_excluded=1")


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
    (val,) = (line for line in metrics(two_ranks[0]) if line["event"] == "val")
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
    assert [tuple(pair) for pair in excluded["train"]] == [(image, 0) for image, _ in spoilt.train]
    assert excluded["val"] == [BAD_VAL]
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
    ],
)
def test_a_list_of_no_use_is_refused(small_data, tmp_path, content, message):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Reported, match=message):
        train_here(small_data, tmp_path, f"--data.exclude={path}")
