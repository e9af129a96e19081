"""What random erasing erases: torchvision's rectangles, and nothing around them."""

import dataclasses
from contextlib import closing

import numpy as np
import pytest
import torch
from cifar_archives import write
from torchvision_views import erased_box

from pipeline.config import ConfigError, DataConfig
from pipeline.data.cifar import open_cifar
from pipeline.data.crops import PaddedCrop, RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.effects import Effects, train_effects
from pipeline.data.erasing import RandomErasing
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET
from pipeline.data.order import Stream, random_words, uniform
from pipeline.data.stream import TrainStream

CPU = torch.device("cpu")
HARD = RandomErasing(0.7, (0.3, 0.95), (0.2, 9.0))  # many tries do not fit
BATCH = np.arange(40)


@pytest.mark.parametrize("erasing", [RandomErasing(0.25), RandomErasing(1.0), HARD])
@pytest.mark.parametrize("shape", [(224, 224), (33, 50), (1, 1)])
def test_rectangles_are_torchvisions(erasing, shape):
    words = random_words(5, Stream.ERASE, 77, 2000, erasing.words_per_position)
    found = erasing.boxes(words, shape)
    rules = erasing.probability, erasing.area, erasing.aspect, shape
    assert found.tolist() == [erased_box(draws, *rules) for draws in uniform(words).tolist()]
    assert found.dtype == np.int32
    y, x, high, wide = found.T
    assert (y.min(), x.min()) == (0, 0)
    assert (y + high).max() <= shape[0]
    assert (x + wide).max() <= shape[1]
    if shape != (1, 1):  # nothing is smaller than one pixel
        share = (high > 0).mean()
        assert share > 0.4 if erasing is HARD else abs(share - erasing.probability) < 0.03


def test_a_position_does_not_depend_on_its_batch():
    words = random_words(5, Stream.ERASE, 0, 100, HARD.words_per_position)
    whole = HARD.boxes(words, (64, 64))
    parts = [HARD.boxes(words[i : i + 1], (64, 64)) for i in range(100)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def draw(stream, decoder="cpu", output="float32", normalisation=IMAGENET) -> np.ndarray:
    """A batch, (B, H, W, 3)."""
    settings = DecodeSettings(decoder, CPU, 1, output=output, normalisation=normalisation)
    with closing(Loader(stream, [BATCH], 1, len(BATCH), settings)) as loader:
        images = next(loader).images
    assert images.is_contiguous(memory_format=torch.channels_last)
    return images.permute(0, 2, 3, 1).float().numpy()


def inside(boxes: np.ndarray, side: int) -> np.ndarray:
    """(B, H, W), True where something is erased."""
    masks = np.zeros((len(boxes), side, side), bool)
    for mask, (y, x, high, wide) in zip(masks, boxes, strict=True):
        mask[y : y + high, x : x + wide] = True
    return masks


@pytest.mark.parametrize("output", ["float32", "float16", "uint8"])
def test_erased_pixels_are_the_mean_and_all_others_stay(small_data, output):
    manifest, crop = open_manifest(small_data, "train"), RandomResizedCrop(48, color_std=0.1)
    effects = Effects(erasing=RandomErasing(0.5))
    plain, stream = TrainStream(manifest, crop, 3), TrainStream(manifest, crop, 3, effects=effects)
    before, after = draw(plain, output=output), draw(stream, output=output)
    plan = stream.select(BATCH).plan
    masks = inside(plan.erased, 48)
    assert 0.3 < masks.any((1, 2)).mean() < 0.7
    np.testing.assert_array_equal(after[~masks], before[~masks])
    # Of uint8, whose levels are whole, the one next to the mean, which the colour offset moves.
    half = 0.5001 / IMAGENET.std if output == "uint8" else 0
    assert (np.abs(after[masks]) <= half).all()
    assert np.abs(before[masks]).max() > 1
    np.testing.assert_array_equal(plain.select(BATCH).plan.boxes, plan.boxes)


def test_cifars_pixels_are_erased_too(tmp_path):
    write(tmp_path)
    images, effects = open_cifar(tmp_path, None)[0], Effects(erasing=RandomErasing(1.0))
    stream = TrainStream(images, PaddedCrop(), 3, effects=effects)
    before, after = draw(TrainStream(images, PaddedCrop(), 3), "none"), draw(stream, "none")
    masks = inside(stream.select(BATCH).plan.erased, 32)
    assert masks.any((1, 2)).all()
    np.testing.assert_array_equal(after, np.where(masks[..., None], 0, before))


def test_the_configuration_erases():
    config = DataConfig(erase=0.25, erase_area=(0.1, 0.2), erase_aspect=(0.5, 2.0))
    assert train_effects(config) == Effects(erasing=RandomErasing(0.25, (0.1, 0.2), (0.5, 2.0)))
    assert train_effects(dataclasses.replace(config, erase=0.0)) == Effects()


@pytest.mark.parametrize("settings, message", [
    ({"erase": 1.5}, r"data\.erase=1\.5 must lie in \[0, 1\]"),
    ({"erase_area": (0.0, 0.3)}, r"data\.erase_area=\[0\.0,0\.3\] must satisfy 0 < least <= most"),
    ({"erase_area": (0.4, 0.3)}, r"data\.erase_area=\[0\.4,0\.3\] must satisfy"),
    ({"erase_area": (0.1, 1.0)}, r"most < 1; it is a share of the image"),
    ({"erase_aspect": (3.0, 0.3)}, r"data\.erase_aspect=\[3\.0,0\.3\] must satisfy 0 < least <= m"),
    ({"erase_aspect": (0.3, float("inf"))}, r"it is height / width"),
])  # fmt: skip
def test_a_rectangle_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)
