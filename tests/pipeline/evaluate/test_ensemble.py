"""Checkpoints whose scores cannot be averaged are refused, both values named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import Config, ConfigError, DataConfig, ModelConfig
from pipeline.data.normalisation import IMAGENET
from pipeline.evaluate.__main__ import parse_options
from pipeline.evaluate.members import (
    Member,
    make_member,
    require_alike,
    require_unseen,
    with_test_images,
)
from pipeline.train.checkpoint import Trained

MODEL = ModelConfig(depth=18)


def member(name: str, *options: str, data: DataConfig | None = None, **content: object) -> Member:
    """A member as its checkpoint `name` gives it; the file itself is not needed."""
    stored = Trained(
        Path(name), Config(data or DataConfig(), MODEL), ["cat", "dog"], IMAGENET,
        {"w": torch.ones(2)}, step=7, world_size=1, fingerprint={}, excluded={},
    )  # fmt: skip
    given = parse_options(["--checkpoint", __file__, *options])
    return make_member(dataclasses.replace(stored, **content), given)


OTHER_NORMAL = dataclasses.replace(IMAGENET, mean=np.array([125.3, 123, 113.9], np.float32))


@pytest.mark.parametrize(
    ("other", "theirs", "mine"),
    [
        ({"classes": ["cat", "dog", "owl"]}, "3 classes", "2 classes"),
        ({"classes": ["cat", "owl"]}, "owl as class 1", "dog as class 1"),
        ({"data": DataConfig(image_size=192)}, "data.image_size=192", "data.image_size=224"),
        ({"data": DataConfig(val_resize=288)}, "data.val_resize=288", "data.val_resize=256"),
        (
            {"normalisation": OTHER_NORMAL},
            "pixels normalised by [125.30, 123.00, 113.90] / [58.40, 57.12, 57.38]",
            "pixels normalised by [123.68, 116.28, 103.53] / [58.40, 57.12, 57.38]",
        ),
    ],
)
def test_checkpoints_that_cannot_be_averaged_are_refused(other, theirs, mine):
    with pytest.raises(ConfigError) as error:
        require_alike([member("a.pt"), member("b.pt", **other)])
    for part in (f"b.pt has {theirs}", f"a.pt has {mine}"):
        assert part in str(error.value)


def test_checkpoints_of_different_depth_may_be_averaged():
    deep = Config(model=ModelConfig(depth=101))
    require_alike([member("a.pt"), member("b.pt", config=deep)])


def test_a_setting_of_the_command_line_makes_views_alike():
    one, other = DataConfig(val_resize=288), DataConfig(val_resize=256)
    option = "--data.val_resize=256"
    require_alike([member("a.pt", option, data=one), member("b.pt", option, data=other)])


def test_images_that_a_member_was_trained_on_are_no_test_of_the_ensemble():
    def held_out(name: str, images: int | None) -> Member:
        data = DataConfig(
            dataset="cifar-10", train_crop="padded", image_size=32, val_resize=32, held_out=images
        )
        return member(name, data=data)

    for fewer in (None, 1000):
        with pytest.raises(ConfigError, match="b.pt was trained with data.held_out=.*and so on"):
            require_unseen([held_out("a.pt", 5000), held_out("b.pt", fewer)])
        require_unseen([held_out("a.pt", fewer), held_out("b.pt", 5000)])
    require_unseen([held_out("a.pt", 5000), held_out("b.pt", 5000)])
    require_unseen([member("a.pt"), member("b.pt")])


def test_what_the_network_was_trained_with_stays_known():
    found = member("a.pt", "--data.image_size=256", "--data.local_batch_size=2", "--data.root=/x")
    assert (found.config.data.image_size, found.config.data.local_batch_size) == (256, 2)
    assert (found.as_trained.data.image_size, found.as_trained.data.local_batch_size) == (224, 256)
    assert found.as_trained.data.root == found.config.data.root == "/x"


def test_weights_are_named_by_a_digest():
    same, other = member("b.pt").trained, member("c.pt", weights={"w": torch.zeros(2)}).trained
    assert member("a.pt").trained.digest == same.digest != other.digest


def test_test_images_take_the_place_of_held_out_ones_alone():
    cifar = DataConfig(dataset="cifar-10", train_crop="padded", image_size=32, held_out=5000)
    assert with_test_images(Config(cifar)).data == dataclasses.replace(cifar, held_out=None)
    with pytest.raises(ConfigError, match="--test-images is for runs that hold out training imag"):
        with_test_images(Config())
