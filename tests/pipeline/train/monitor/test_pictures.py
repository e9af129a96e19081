"""Pictures: their size, what is in them, names that are too long; none of them may end a run."""

from contextlib import closing

import numpy as np
import pytest
import torch
from cifar_archives import write
from one_process import train_here

from pipeline.data.cifar import open_cifar
from pipeline.data.crops import PaddedCrop, RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.stream import TrainStream
from pipeline.train.folder import RunFolder
from pipeline.train.monitor import pictures
from pipeline.train.monitor.pictures import caption, captioned, class_bars, grid, mean_in_views

POSITIONS = np.arange(16)


def test_a_grid_is_the_largest_square():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 7, 6, 3), np.uint8)
    found = grid(images)
    assert found.shape == (14, 12, 3)
    assert [found[0, 0, 0], found[0, 6, 0], found[7, 0, 0], found[7, 6, 0]] == [0, 1, 2, 3]


def test_mistakes_stand_three_in_a_row_over_their_captions():
    images = np.full((5, 32, 32, 3), 40, np.uint8)
    page = captioned(images, [caption("cat", "dog", 0.97)] * 5)
    assert page.shape == (2 * (114 + 34), 350, 3)
    assert (page[10, 10] == 40).all()
    assert (page[114 + 34 + 10, 2 * 118 + 10] == 255).all()  # the second row has two images
    assert (page[114:148, :114] < 255).any()


def test_captions_name_both_classes_and_are_cut_to_what_fits():
    assert caption("cat", "dog", 0.973) == ("is cat", "not dog 97%")
    true, guess = caption("a very long name of a class", "another very long name", 1.0)
    assert true.startswith("is a very") and guess.endswith("\N{HORIZONTAL ELLIPSIS} 100%")
    assert max(len(true), len(guess)) <= 18


def test_classes_are_bars_from_the_worst_to_the_best_and_empty_ones_are_left_out():
    page = class_bars(["a", "b", "c"], [1, 0, 2], [2, 0, 2])
    assert page.shape == (2 * 18 + 8, 350, 3)
    green = (page == (0, 158, 115)).all(-1)
    assert [int(green[12 + 18 * row].sum()) for row in range(2)] == [56, 111]
    of_many = class_bars([f"class {n}" for n in range(1000)], list(range(1000)), [1000] * 1000)
    assert of_many.shape[0] == 21 * 18 + 8  # the ten worst, the ten best, and a line between


def loaded(stream: TrainStream, decoder: str, image: np.ndarray | None) -> np.ndarray:
    """Views (16, 32, 32, 3) as the network gets them, times the deviations."""
    normal = Normalisation(IMAGENET.mean, IMAGENET.std, image, IMAGENET.color_axes)
    how = DecodeSettings(decoder, torch.device("cpu"), 1, normalisation=normal)
    with closing(Loader(stream, [POSITIONS], 1, len(POSITIONS), how)) as loader:
        return next(loader).images.permute(0, 2, 3, 1).numpy() * IMAGENET.std


@pytest.mark.parametrize("decoder", ["cpu", "none"])
def test_a_mean_image_is_added_back_as_it_was_subtracted(small_data, tmp_path, decoder):
    if decoder == "none":
        write(tmp_path)
        stream = TrainStream(open_cifar(tmp_path, None)[0], PaddedCrop(), seed=3)
        beyond = IMAGENET.mean
    else:
        stream = TrainStream(open_manifest(small_data, "train"), RandomResizedCrop(32), seed=3)
        beyond = None
    image = np.random.default_rng(1).uniform(90, 150, (32, 32, 3)).astype(np.float32)
    plan = stream.select(POSITIONS).plan
    assert set(plan.flips.tolist()) == {0, 1}
    with_image, wanted = loaded(stream, decoder, image), loaded(stream, decoder, None)
    wanted += IMAGENET.mean
    np.testing.assert_allclose(with_image + mean_in_views(plan, image, beyond), wanted, atol=1e-3)
    assert np.abs(with_image + image - wanted).max() > 10  # as it lies in none


def test_a_picture_that_cannot_be_drawn_costs_a_warning_and_not_the_run(
    small_data, tmp_path, monkeypatch
):
    def broken(*_):
        raise ValueError("no such colour")

    monkeypatch.setattr(pictures, "_pixels", broken)
    run = RunFolder(train_here(small_data, tmp_path))
    said = "warning: a picture for TensorBoard is left out: no such colour"
    assert run.log.read_text().count(said) == 2  # of training and of validation
    assert run.last("done")
