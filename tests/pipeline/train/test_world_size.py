"""Another number of ranks sees the same images, cut alike, in the same order."""

import shutil
from typing import Any

import jobs
import numpy as np
import pytest
from jobs import SABOTEUR, resumable
from one_process import train_here
from run_files import checkpoint_steps, differences, metrics, newest_checkpoint

from pipeline.config import DataConfig
from pipeline.data.batches import Partition, split_global_batch
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import train_stream

GLOBAL_BATCH, EPOCHS = 12, 3
EFFECTS: dict[str, Any] = {"augment": "rand", "augment_std": 2.0, "erase": 0.5}


@pytest.fixture(scope="module")
def manifest(small_data):
    return open_manifest(small_data, "train")


def rank_stream(manifest, rank, world_size, steps, local_batch_size):
    """What one rank decodes in `steps`, each array with one row per image, in its order.

    A stream of its own per call, as after a restart: nothing is carried from step to step.
    """
    data = DataConfig(
        global_batch_size=GLOBAL_BATCH, local_batch_size=local_batch_size, image_size=32,
        val_resize=36, color_std=0.1, **EFFECTS,
    )  # fmt: skip
    micro_batch, accumulation = split_global_batch(GLOBAL_BATCH, local_batch_size, world_size)
    partition = Partition(GLOBAL_BATCH, micro_batch, rank, world_size)
    stream = train_stream(manifest, data, seed=5)
    for step in steps:
        for micro in range(accumulation):
            chosen = stream.select(partition.positions(step, micro))
            yield {
                "positions": chosen.positions, "images": chosen.images, "labels": chosen.labels,
                "boxes": chosen.plan.boxes, "flips": chosen.plan.flips,
                "offsets": chosen.plan.offsets, "operations": chosen.plan.operations,
                "strengths": chosen.plan.strengths, "erased": chosen.plan.erased,
            }  # fmt: skip


def job_stream(manifest, world_size, steps, local_batch_size=3):
    """What all ranks together decode, by position."""
    chunks = [
        chunk
        for rank in range(world_size)
        for chunk in rank_stream(manifest, rank, world_size, steps, local_batch_size)
    ]
    rows = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    order = np.argsort(rows["positions"], kind="stable")
    return {name: values[order] for name, values in rows.items()}


def steps_of(manifest, epochs):
    return range(-(-epochs * len(manifest) // GLOBAL_BATCH))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (4, 4), (2, 1), (2, 3), (4, 2)])
def test_any_ranks_see_the_same_images_cut_alike_also_after_a_restart_with_others(manifest, sizes):
    steps, stop = steps_of(manifest, EPOCHS), 6  # inside the second epoch
    alone = job_stream(manifest, 1, steps, local_batch_size=GLOBAL_BATCH)
    parts = [
        job_stream(manifest, sizes[0], steps[:stop]), job_stream(manifest, sizes[1], steps[stop:])
    ]  # fmt: skip
    assert list(alone["positions"]) == list(range(len(steps) * GLOBAL_BATCH))
    for name, values in alone.items():
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(joined, values, err_msg=name)
    assert len(np.unique(alone["boxes"], axis=0)) > 100, "the crops are not random"
    for epoch in range(EPOCHS):
        of_epoch = alone["images"][epoch * len(manifest) : (epoch + 1) * len(manifest)]
        assert sorted(of_epoch) == list(range(len(manifest)))


def test_a_run_stopped_at_2_ranks_and_finished_by_1_has_the_same_bits(
    small_data, tmp_path, uninterrupted
):
    two = jobs.run([str(SABOTEUR), "stop-step:9:1", *resumable(small_data, tmp_path)], ranks=2)
    assert two.codes == [75, 75], two.text
    assert checkpoint_steps(tmp_path / "test")[-1] == 10
    run = train_here(small_data, tmp_path, *jobs.RESUMABLE, "--data.local_batch_size=4")
    said = "batch: 8 = 1 rank x 4 images x 2 accumulated; steps 10 to 19"
    assert said in (run / "log.txt").read_text()

    found, wanted = newest_checkpoint(run), newest_checkpoint(uninterrupted)
    for part in ("step", "position", "model", "momentum", "history"):
        assert differences(found[part], wanted[part]) == []
    assert len(wanted["momentum"]) == 23 and "bn1.running_mean" in wanted["model"]
    ours, theirs = (
        [line for line in metrics(one) if line.pop("event") == "train"]
        for one in (run, uninterrupted)
    )
    assert len(ours) == len(theirs) == 7
    for line, wanted_line in zip(ours, theirs, strict=True):
        assert line == wanted_line, "other images, or another lr"
    shutil.rmtree(tmp_path)
