"""Runs on a data set with bad files in it, under data.bad_images=exclude."""

from __future__ import annotations

import json
import shutil

import jobs
import pytest
from image_zoo import specimens
from jobs import copy_data
from one_process import evaluate_here, train_here
from run_files import metrics, newest_checkpoint, state_differences

from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import epoch_permutation
from pipeline.system.failure import Reported
from pipeline.train.checkpoint import read_verified

# Micro-batches of 2: two to a step on each of two ranks, four on one. Two epochs.
EXCLUDE = (
    "--data.bad_images=exclude", "--data.local_batch_size=2", "--schedule.epochs=2",
    "--schedule.drop_epochs=[]", "--run.keep_checkpoints=20", "--run.checkpoint_every_steps=1",
)  # fmt: skip
STEP = 8
TRAIN_POSITIONS = (3, 22)
"""Where in the first epoch of seed 0 the bad training images stand: in the first step, second
micro-batch of rank 0; and in the third step."""
BAD_VAL = (13, 14, 29)
"""Two neighbours, and the last one, which stands next to padding."""


@pytest.fixture(scope="module")
def spoilt(small_data, tmp_path_factory):
    """The folder of a data set with two bad training images and three bad validation images, and
    the former as a checkpoint holds them: image, position from which it is excluded, position where
    it failed."""
    root = copy_data(small_data, tmp_path_factory.mktemp("spoilt") / "data")
    train_set = open_manifest(root, "train")
    val_set = open_manifest(root, "val", classes=train_set.classes)
    order = epoch_permutation(0, 0, len(train_set))
    images = [int(order[position]) for position in TRAIN_POSITIONS]
    for path in [*map(train_set.path, images), *map(val_set.path, BAD_VAL)]:
        # Cut in the middle: the header stays readable.
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    steps = [(position // STEP + 1) * STEP for position in TRAIN_POSITIONS]
    rows = zip(images, steps, TRAIN_POSITIONS, strict=True)
    return root, sorted(map(list, rows))


@pytest.fixture(scope="module")
def two_ranks(spoilt, tmp_path_factory):
    """Two ranks: (folder of the run, what it said)."""
    root, _ = spoilt
    runs = tmp_path_factory.mktemp("two")
    ended = jobs.run(jobs.train(root, runs, *EXCLUDE), ranks=2, engine="torch")
    assert ended.codes == [0, 0], ended.text
    return runs / "test", ended.text


def test_a_run_goes_on_without_its_bad_images_and_keeps_record(two_ranks, spoilt):
    run, said = two_ranks
    content = newest_checkpoint(run)
    assert content["excluded"] == {"train": spoilt[1], "val": list(BAD_VAL)}
    lines = metrics(run)
    assert [line["excluded"] for line in lines if line["event"] == "train"][-1] == 2
    vals = [line for line in lines if line["event"] == "val"]
    assert [(val["images"], val["excluded"]) for val in vals] == [(30, 3)] * 2
    for position in TRAIN_POSITIONS:
        assert f"the run continues without it in train at position {position} (" in said
    assert said.count("the run continues without it in val (5 excluded of at most 100)") == 3


def test_one_rank_excludes_the_same_and_ends_with_the_same_weights(two_ranks, spoilt, tmp_path):
    alone = newest_checkpoint(train_here(spoilt[0], tmp_path, *EXCLUDE))
    two = newest_checkpoint(two_ranks[0])
    assert alone["excluded"] == two["excluded"]
    for name, velocity in two["momentum"].items():  # up to the order of a sum of four
        far = (alone["momentum"][name] - velocity).norm() / velocity.norm()
        assert far < 1e-3, f"{name}: other images"


def test_a_run_stopped_after_an_exclusion_goes_on_with_the_same_bits(two_ranks, spoilt, tmp_path):
    early = two_ranks[0] / "checkpoints" / "step-000000002.pt"
    excluded = read_verified(early)["excluded"]["train"]
    assert len(excluded) == 1, "after the first bad image and before the second"
    argv = jobs.train(spoilt[0], tmp_path, *EXCLUDE, f"--resume={early}")
    ended = jobs.run(argv, ranks=2)
    assert ended.codes == [0, 0], ended.text
    assert state_differences(tmp_path / "test", two_ranks[0]) == []


def spoil_validation(root):
    for path in (root / "val").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:200] + b"\xff\xd9")


def test_a_run_goes_on_without_legal_images_that_the_decoder_does_not_take(small_data, tmp_path):
    """Each could have ended the process, or been read as other pixels."""
    root = copy_data(small_data, tmp_path / "data")
    kinds = dict(specimens(mutants=0))
    names = ["bmp-40-16.bmp", "bmp-rle4.bmp", "tiff-I-None.tif", "tiff-turned-6-RGB.tif"]
    paths = sorted((root / "train").rglob("*.JPEG"))[::12]
    for path, name in zip(paths, names, strict=False):
        path.write_bytes(kinds[name])
    run = train_here(root, tmp_path / "runs", *EXCLUDE)
    assert len(newest_checkpoint(run)["excluded"]["train"]) == len(names)
    said = (run / "log.txt").read_text()
    for reason in (
        "a BMP of 16 bits",
        "with RLE4",
        "a TIFF of signed numbers",
        "orientation tag (6)",
    ):
        assert reason in said


def change_an_image(root):
    train_set = open_manifest(root, "train")
    good = train_set.path(int(epoch_permutation(0, 0, len(train_set))[1]))
    good.write_bytes(good.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("change", "most", "message"),
    [
        (lambda root: None, 1, "2 images are excluded and data.max_excluded=1"),
        (spoil_validation, 5, "images are excluded and data.max_excluded=5"),  # and does not hang
        (change_an_image, 9, "put back the file that was scanned"),
    ],
)
def test_data_that_exclusion_does_not_help_end_the_run(spoilt, tmp_path, change, most, message):
    root = copy_data(spoilt[0], tmp_path / "data")
    change(root)
    with pytest.raises(Reported, match=message):
        train_here(root, tmp_path, *EXCLUDE, f"--data.max_excluded={most}", "--schedule.epochs=1")


def test_evaluate_counts_what_the_training_counted(two_ranks, spoilt, tmp_path):
    checkpoint, out = two_ranks[0] / "checkpoints" / "best.pt", tmp_path / "result.json"
    evaluate_here("--checkpoint", str(checkpoint), f"--data.root={spoilt[0]}", f"--json={out}")
    vals = [line for line in metrics(two_ranks[0]) if line["event"] == "val"]
    val, result = max(reversed(vals), key=lambda line: line["top1"]), json.loads(out.read_text())
    assert (result["top1"], result["images"]) == (val["top1"], 30)
    assert result["loss"] == pytest.approx(val["loss"], rel=1e-12)


def test_a_run_with_the_list_of_verify_meets_no_bad_image(spoilt, tmp_path):
    root, rows = spoilt
    report = tmp_path / "verify.jsonl"
    ended = jobs.run(["-m", "pipeline.prepare", "verify", f"--root={root}", f"--report={report}"])
    assert ended.codes == [2], ended.text
    listed = f"--data.exclude={report.with_suffix('.exclude.json')}"
    run = train_here(root, tmp_path, listed)
    excluded = newest_checkpoint(run)["excluded"]
    assert excluded["train"] == [[image, 0] for image, _, _ in rows]
    assert excluded["val"] == list(BAD_VAL)
    assert "cannot be used" not in (run / "log.txt").read_text()
    # Given again, at the next start, it changes nothing.
    assert newest_checkpoint(train_here(root, tmp_path, listed))["excluded"] == excluded


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read: No such file"),
        ("{", "is not an exclusion list of python -m pipeline.prepare verify"),
        ('{"splits": {"train": {"data_hash": "0123", "images": [1]}}}', "hash of train 0123 there"),
        ('{"version": 1, "splits": {"train": {"data_hash": "HASH", "images": [50]}}}', "is not an"),
        ('{"version": 2, "splits": {}}', "is not an exclusion list"),
    ],
)
def test_a_list_of_no_use_is_refused(small_data, tmp_path, content, message):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content.replace("HASH", open_manifest(small_data, "train").digest))
    with pytest.raises(Reported, match=message):
        train_here(small_data, tmp_path, f"--data.exclude={path}")
