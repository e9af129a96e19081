"""What may be asked of each test protocol, and the sentences for what may not."""

from __future__ import annotations

import pytest

from pipeline.config import Config, ConfigError, DataConfig, ModelConfig
from pipeline.data.crops import Crop, WholeImage
from pipeline.evaluate.__main__ import parse_options
from pipeline.evaluate.protocol import (
    ViewProtocol,
    choose_protocol,
    pool_window,
    smallest_scale,
)


@pytest.mark.parametrize(
    ("name", "scales", "mirror", "views"),
    [
        ("1-crop", None, False, (Crop(192, 200),)),
        ("multi-scale", None, False, tuple(map(WholeImage, (224, 256, 384, 480, 640)))),  # paper's
        ("multi-scale", [256, 384], True,
         (WholeImage(256), WholeImage(256, True), WholeImage(384), WholeImage(384, True))),
    ],
)  # fmt: skip
def test_views_are_cut_as_the_settings_and_the_command_line_say(name, scales, mirror, views):
    config = Config(DataConfig(image_size=192, val_resize=200))
    assert choose_protocol(name, scales, mirror).views(config) == views


@pytest.mark.parametrize(
    ("name", "scales", "mirror", "message"),
    [
        ("10-crop", None, True, "--mirror is not for --protocol 10-crop, whose crops are mirrored"),
        ("1-crop", None, True, "--mirror is for --protocol multi-scale and the protocol is 1-crop"),
        ("10-crop", [224], False, "--scales is for --protocol multi-scale and the protocol is 10-"),
        ("multi-scale", [256, 256], False, "--scales 256 256 holds a side twice"),
        ("multi-scale", [0, 256], False, "--scales 0 256 must be shorter sides in pixels, such as"),
    ],
)
def test_what_a_protocol_has_not_is_refused(name, scales, mirror, message):
    with pytest.raises(ConfigError) as error:
        choose_protocol(name, scales, mirror)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("family", "image_size", "window", "least"),
    [("imagenet", 224, 7, 193), ("imagenet", 32, 1, 33), ("cifar", 32, 8, 29)],
)
def test_the_smallest_scale_holds_one_pooling_window(family, image_size, window, least):
    model = ModelConfig(family, depth=50 if family == "imagenet" else 20)
    config = Config(DataConfig(image_size=image_size), model)
    assert (pool_window(config), smallest_scale(config)) == (window, least)


def test_a_scale_below_the_smallest_is_refused():
    ViewProtocol("multi-scale", (193,)).check(Config())
    with pytest.raises(ConfigError, match="--scales 160 192: the smallest possible is 193, whose"):
        ViewProtocol("multi-scale", (160, 192, 224)).check(Config())


def test_cifar_10_is_tested_on_one_crop_alone():
    config = Config(DataConfig(dataset="cifar-10", train_crop="padded", image_size=32))
    ViewProtocol().check(config)
    with pytest.raises(ConfigError, match="--protocol 10-crop is not for data.dataset=cifar-10"):
        ViewProtocol("10-crop").check(config)


def test_statistics_are_of_a_number_of_images_or_all():
    given = [parse_options(["--checkpoint", __file__, *more]).bn_images
             for more in ([], ["--bn-images=all"], ["--bn-images=5000"])]  # fmt: skip
    assert given == [None, "all", 5000]
    for text in ("0", "1", "-5"):
        with pytest.raises(ConfigError, match=f"--bn-images {text} must be a number of training"):
            parse_options(["--checkpoint", __file__, f"--bn-images={text}"])
    for text in ("some", "2.5"):
        with pytest.raises(ConfigError, match=f"--bn-images {text} must be a whole number, all"):
            parse_options(["--checkpoint", __file__, f"--bn-images={text}"])
