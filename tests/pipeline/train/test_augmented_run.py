"""A run with everything that is done to images and their order resumes with the same bits."""

import shutil

import jobs
import numpy as np
from jobs import SABOTEUR, copy_data
from one_process import train_here
from run_files import checkpoint_steps, differences, metrics, newest_checkpoint

from pipeline.config import DataConfig
from pipeline.data.index.manifest import open_manifest
from pipeline.data.sampling import make_order

SETTINGS = (
    "--schedule.epochs=1", "--schedule.drop_epochs=[]", "--data.local_batch_size=4",
    "--run.checkpoint_every_steps=2", "--data.augment=rand", "--data.augment_magnitude=15",
    "--data.augment_std=2", "--data.erase=0.5", "--data.repeats=2", "--data.sampling=balanced",
)  # fmt: skip


def test_a_bad_image_is_left_out_at_each_of_its_repeats(small_data, tmp_path):
    root = copy_data(small_data, tmp_path / "data")
    train_set = open_manifest(root, "train")
    order = make_order(train_set, DataConfig(sampling="balanced", repeats=2), seed=0)
    images = order.images(np.arange(56))  # 7 steps of 8
    bad = int(images[12])
    path = train_set.path(bad)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    settings = "--data.bad_images=exclude", "--run.checkpoint_every_steps=null"
    run = train_here(root, tmp_path / "runs", *SETTINGS, *settings)
    assert newest_checkpoint(run)["excluded"]["train"] == [[bad, 16, 12, 13]]
    shutil.rmtree(tmp_path)


def test_two_ranks_killed_and_one_rank_that_resumes_are_one_rank_that_accumulates(
    small_data, tmp_path
):
    whole = train_here(small_data, tmp_path / "whole", *SETTINGS)
    order = make_order(
        open_manifest(small_data, "train"), DataConfig(sampling="balanced", repeats=2), seed=0
    )
    assert f"order of epoch 1: {order.digest(0)}" in (whole / "log.txt").read_text()

    runs = tmp_path / "killed"
    fault = [str(SABOTEUR), "kill-step:5:1", *jobs.small_settings(small_data, runs), *SETTINGS]
    two = jobs.run(fault, ranks=2)
    assert -9 in two.codes, two.text
    assert checkpoint_steps(runs / "test")[-1] == 4
    run = train_here(small_data, runs, *SETTINGS)
    assert "8 = 1 rank x 4 images x 2 accumulated; steps 4 to 7" in (run / "log.txt").read_text()

    found, wanted = newest_checkpoint(run), newest_checkpoint(whole)
    for part in ("step", "position", "model", "momentum", "history"):
        assert differences(found[part], wanted[part]) == []
    ours, theirs = (
        [line for line in metrics(one) if line.pop("event") == "train"] for one in (run, whole)
    )
    assert ours == theirs
    plain = train_here(small_data, tmp_path / "plain", *SETTINGS, "--data.augment=none")
    assert differences(newest_checkpoint(plain)["model"], wanted["model"]), "it has no effect"
    shutil.rmtree(tmp_path)
