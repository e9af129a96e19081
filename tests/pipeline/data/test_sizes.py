"""Growing crops: a size belongs to a step, and one graph gives all of them."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch

from pipeline.config import ConfigError, DataConfig
from pipeline.data.batches import Course
from pipeline.data.dali import DecodeSettings, Loader, graph
from pipeline.data.index.manifest import open_manifest
from pipeline.data.sizes import Sizes, growing_sizes
from pipeline.data.stream import TrainStream, largest_planner, train_planner

CPU = torch.device("cpu")
BATCH, IMAGES, STEPS = 8, 50, 19
DATA = DataConfig(global_batch_size=BATCH, image_sizes={0: 16, 1: 24, 2: 40}, val_size=32)


@pytest.fixture(scope="module")
def manifest(small_data):
    return open_manifest(small_data, "train")


def test_a_size_begins_with_the_first_step_whose_images_all_lie_in_its_epoch():
    sizes = growing_sizes(DATA, IMAGES, STEPS)
    assert sizes is not None and sizes.steps == [(0, 16), (7, 24), (13, 40)]
    # Step 6 holds positions 48 to 55: two of epoch 0 and six of epoch 1.
    assert [sizes.of_step(step) for step in (0, 6, 7, 12, 13, 18)] == [16, 16, 24, 24, 40, 40]
    # All positions of a step have its size, whichever micro-batch they are in.
    assert {sizes.at(position) for position in range(48, 56)} == {16}
    assert sizes.largest == 40
    assert sizes.describe() == ("16 px from step 0 on, 24 px from step 7 on, 40 px from step 13 on")


def test_a_size_begins_where_its_epoch_does_if_that_is_a_step():
    sizes = Sizes(((0, 16), (48, 24)), BATCH)
    assert sizes.steps == [(0, 16), (6, 24)]
    assert [sizes.at(position) for position in (47, 48)] == [16, 24]
    course = Course(48, BATCH, 12)
    assert course.next_validation(0) == 6, "validated with the size that it was trained with"


def test_where_one_size_is_all_there_is_nothing_grows():
    assert growing_sizes(DataConfig(), IMAGES, STEPS) is None
    assert growing_sizes(DataConfig(image_sizes={0: 176}), IMAGES, STEPS) is None
    assert train_planner(DataConfig(image_sizes={0: 176})).size == 176


def test_a_size_behind_the_last_step_is_refused_once_the_images_are_counted():
    with pytest.raises(ConfigError) as error:
        growing_sizes(DATA, IMAGES, 13)
    assert str(error.value) == (
        "data.image_sizes={0: 16, 1: 24, 2: 40} begins 40 px with epoch 2, step 13, and the run "
        "has 13 steps; take that epoch out, or lengthen the run"
    )
    assert growing_sizes(DATA, IMAGES, 14) is not None


@pytest.mark.parametrize("crop", ["random_resized_crop", "scale_jitter"])
def test_a_grown_crop_is_the_one_that_a_run_of_its_size_has(manifest, crop):
    common = {"global_batch_size": BATCH, "train_crop": crop, "short_side": (48, 64)}
    growing = DataConfig(image_sizes=DATA.image_sizes, **common)
    sizes = growing_sizes(growing, len(manifest), STEPS)
    stream = TrainStream(manifest, train_planner(growing), 5, sizes=sizes)
    for step, size in ((6, 16), (7, 24), (18, 40)):
        fixed = TrainStream(manifest, train_planner(DataConfig(image_size=size, **common)), 5)
        positions = np.arange(step * BATCH + 4, step * BATCH + 8)  # the second of two micro-batches
        found, wanted = stream.select(positions), fixed.select(positions)
        assert found.plan.shape == wanted.plan.shape == (size, size)
        np.testing.assert_array_equal(found.images, wanted.images)
        np.testing.assert_array_equal(found.plan.boxes, wanted.plan.boxes)
        np.testing.assert_array_equal(found.plan.flips, wanted.plan.flips)


@pytest.mark.parametrize("output", ["float32", "uint8"])
def test_one_graph_gives_batches_of_every_size_with_the_pixels_of_each(
    manifest, monkeypatch, output
):
    made, make_pipeline = [], graph.make_pipeline
    monkeypatch.setattr(
        graph, "make_pipeline", lambda *given: made.append(given) or make_pipeline(*given)
    )
    settings = DecodeSettings("cpu", CPU, 1, output=output)
    sizes = growing_sizes(DATA, len(manifest), STEPS)
    stream = TrainStream(manifest, train_planner(DATA), 5, sizes=sizes)
    chunks = [np.arange(s * BATCH, (s + 1) * BATCH) for s in (6, 7, 12, 13)]
    with closing(Loader(stream, chunks, 4, BATCH, settings)) as loader:
        found = [batch.images.clone() for batch in loader]
    assert len(made) == 1
    assert [tuple(images.shape) for images in found] == [
        (BATCH, 3, size, size) for size in (16, 24, 24, 40)
    ]
    for chunk, images in zip(chunks, found, strict=True):
        one = DataConfig(image_size=images.shape[-1])
        alone = TrainStream(manifest, train_planner(one), 5)
        with closing(Loader(alone, [chunk], 1, BATCH, settings)) as loader:
            assert torch.equal(next(loader).images, images)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_largest_view_is_that_of_training_or_of_validation():
    def largest(**data: object) -> tuple[int, int]:
        planner = largest_planner(DataConfig(**data))
        return planner.size, planner.resize

    assert largest() == (224, 256)
    assert largest(image_sizes={0: 128, 6: 192}, val_size=160) == (192, 256)
    assert largest(image_sizes={0: 128, 6: 288}) == (288, 288)
    assert largest(val_size=256) == (256, 256)
