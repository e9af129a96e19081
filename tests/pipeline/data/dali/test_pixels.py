"""CIFAR's crops as DALI executes them, pixel for pixel against numpy."""

from contextlib import closing

import numpy as np
import pytest
import torch
from cifar_archives import write

from pipeline.config import ConfigError, DataConfig
from pipeline.data.cifar import CifarImages, open_cifar
from pipeline.data.crops import PaddedCrop, WholeImage
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.normalisation import Normalisation
from pipeline.data.order import Stream, random_words, uniform
from pipeline.data.statistics import of_pixels
from pipeline.data.stream import TrainStream, ValStream, train_planner, val_planner
from pipeline.ranks.places import Share

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> CifarImages:
    root = tmp_path_factory.mktemp("cifar")
    write(root)
    return open_cifar(root, None)[0]


def draw(stream, positions: np.ndarray, normal: Normalisation, output: str = "float32"):
    settings = DecodeSettings("none", CPU, 1, output=output, normalisation=normal)
    with closing(Loader(stream, [positions], 1, len(positions), settings)) as loader:
        return next(loader)


def executed(plan, pixels: np.ndarray, normal: Normalisation) -> np.ndarray:
    """The plan in numpy, one image at a time: mean, zeros, crop, mirror, deviation."""
    found = []
    for (y, x, _, _), flip, image in zip(plan.boxes.astype(int), plan.flips, pixels, strict=True):
        wide = np.zeros((96, 96, 3), np.float32)
        wide[32:64, 32:64] = image - (normal.mean if normal.image is None else normal.image)
        cut = wide[32 + y : 64 + y, 32 + x : 64 + x]
        found.append((cut[:, ::-1] if flip else cut) / normal.std)
    return np.stack(found)


@pytest.mark.parametrize("mean", ["channel", "pixel"])
@pytest.mark.parametrize("output, tolerance", [("float32", 1e-6), ("float16", 2e-3)])
def test_padded_crops_are_those_of_numpy(images, mean, output, tolerance):
    normal = of_pixels(images.pixels)
    normal = normal if mean == "pixel" else normal.for_shape(None)
    stream = TrainStream(images, PaddedCrop(), seed=3)
    positions = np.arange(60, 110)  # over the end of an epoch
    batch, plan = draw(stream, positions, normal, output), stream.select(positions).plan
    chosen = stream.select(positions).images
    wanted = executed(plan, images.pixels[chosen], normal)
    found = batch.images.permute(0, 2, 3, 1).float().numpy()
    assert np.abs(found - wanted).max() < tolerance
    assert batch.images.shape == (50, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.tolist() == images.labels[chosen].tolist()
    assert set(plan.flips.tolist()) == {0, 1}
    assert plan.boxes[:, :2].min() == -4
    assert plan.boxes[:, :2].max() == 4


def test_validation_is_the_image_untouched_and_padded_at_the_end(images):
    normal = of_pixels(images.pixels)
    positions = np.arange(65, 75)
    batch = draw(ValStream(images, WholeImage(32)), positions, normal)
    wanted = (images.pixels[np.minimum(positions, 69)] - normal.image) / normal.std
    np.testing.assert_allclose(batch.images.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-6)
    assert batch.labels.tolist() == [*images.labels[65:].tolist(), *[-1] * 5]


def test_each_decision_has_its_own_word():
    words = random_words(7, Stream.AUGMENT, 5, 500, PaddedCrop.words_per_position)
    sides = np.full(500, 32, np.int32)
    plan, draws = PaddedCrop().plan(sides, sides, words), uniform(words)
    np.testing.assert_array_equal(plan.boxes[:, 0], np.floor(draws[:, 0] * 9) - 4)
    np.testing.assert_array_equal(plan.boxes[:, 1], np.floor(draws[:, 1] * 9) - 4)
    np.testing.assert_array_equal(plan.flips, draws[:, 2] < 0.5)
    assert (plan.boxes[:, 2:] == 32).all()
    unflipped = PaddedCrop(flip=False).plan(sides, sides, words)
    np.testing.assert_array_equal(unflipped.boxes, plan.boxes)
    assert not unflipped.flips.any()
    unpadded = PaddedCrop(padding=0).plan(sides, sides, words)
    assert not unpadded.boxes[:, :2].any()
    assert set(np.unique(PaddedCrop(padding=1).plan(sides, sides, words).boxes[:, 0])) == {-1, 0, 1}


def config(**changes) -> DataConfig:
    own = {"dataset": "cifar-10", "train_crop": "padded", "image_size": 32, "short_side": (32, 32)}
    return DataConfig(**own | changes)


def test_the_configuration_chooses_crop_view_and_graph(images, tmp_path):
    planner = train_planner(config(padding=2, flip=False))
    assert planner == PaddedCrop(32, 2, flip=False)
    assert val_planner(config()) == WholeImage(32)
    normal, data = of_pixels(images.pixels), config(threads=1)
    settings = choose_decoding(data, CPU, Share(2, 0), (images, images), normalisation=normal)
    assert settings.decoder == "none"
    assert settings.normalisation is normal


@pytest.mark.parametrize("wrong, message", [
    ({"dataset": None}, "data.train_crop=padded does not go with data.dataset=null"),
    ({"train_crop": "scale_jitter"}, "data.train_crop=scale_jitter does not go with data.dataset"),
    ({"held_out": 0}, "data.held_out=0 must be at least 1, or null"),
    ({"dataset": None, "train_crop": "scale_jitter", "held_out": 10}, "data.held_out=10 is for"),
    ({"padding": -1}, "data.padding=-1 must be at least 0"),
    ({"color_std": 0.1}, "data.color_std=0.1 is not for data.dataset=cifar-10"),
    ({"image_size": 64}, "data.image_size=64 must be 32 for data.dataset=cifar-10"),
    ({"decode": "gpu"}, "data.decode=gpu is for JPEGs, and cifar-10 has none"),
    ({"output": "uint8"}, "data.output=uint8 subtracts the mean on the model's device"),
    ({"dataset": None, "train_crop": "random_resized_crop", "mean": "pixel", "output": "uint8"},
     "data.output=uint8 subtracts the mean .*; set"),
])  # fmt: skip
def test_settings_that_need_cifar_or_do_not_go_with_it_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        config(**wrong)
