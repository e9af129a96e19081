"""Checkpoints whose scores cannot be averaged are refused, both values named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from weight_files import made_member

from pipeline.config import Config, ConfigError, DataConfig, ModelConfig
from pipeline.data.normalisation import IMAGENET
from pipeline.evaluate.members import (
    Member,
    require_alike,
    require_unseen,
    with_test_images,
)

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
        require_alike([made_member("a.pt"), made_member("b.pt", **other)])
    for part in (f"b.pt has {theirs}", f"a.pt has {mine}"):
        assert part in str(error.value)


def test_checkpoints_of_different_depth_may_be_averaged():
    deep = Config(model=ModelConfig(depth=101))
    require_alike([made_member("a.pt"), made_member("b.pt", config=deep)])


def test_a_setting_of_the_command_line_makes_views_alike():
    one, other = DataConfig(val_resize=288), DataConfig(val_resize=256)
    option = "--data.val_resize=256"
    require_alike([made_member("a.pt", option, data=one), made_member("b.pt", option, data=other)])


def test_images_that_a_member_was_trained_on_are_no_test_of_the_ensemble():
    def held_out(name: str, images: int | None) -> Member:
        data = DataConfig(
            dataset="cifar-10", train_crop="padded", image_size=32, val_resize=32, held_out=images
        )
        return made_member(name, data=data)

    none, some, more = (
        held_out("none.pt", None),
        held_out("some.pt", 1000),
        held_out("more.pt", 5000),
    )
    for fewer in (none, some):
        with pytest.raises(ConfigError, match=f"{fewer.path} was trained with data.held_out="):
            require_unseen([more, fewer])
        require_unseen([fewer, more])
    require_unseen([more, more])


def test_what_the_network_was_trained_with_stays_known():
    found = made_member(
        "a.pt", "--data.image_size=256", "--data.local_batch_size=2", "--data.root=/x"
    )
    assert (found.config.data.image_size, found.config.data.local_batch_size) == (256, 2)
    assert (found.as_trained.data.image_size, found.as_trained.data.local_batch_size) == (224, 256)
    assert found.as_trained.data.root == found.config.data.root == "/x"


def test_test_images_take_the_place_of_held_out_ones_alone():
    cifar = DataConfig(dataset="cifar-10", train_crop="padded", image_size=32, held_out=5000)
    assert with_test_images(Config(cifar)).data == dataclasses.replace(cifar, held_out=None)
    with pytest.raises(ConfigError, match="--test-images is for runs that hold out training imag"):
        with_test_images(Config())
