"""What is found before the first step, or after the first validation."""

import colorsys
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from cifar_archives import write as write_cifar
from jobs import copy_data
from one_process import config_of, train_here
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data.cifar import open_cifar
from pipeline.data.dali import DecodeSettings
from pipeline.data.index.manifest import open_manifest
from pipeline.system.failure import Reported, TrainingError
from pipeline.train.loaders import val_passes
from pipeline.train.preflight import decode_largest
from pipeline.train.validation import labels_look_permuted

CPU = DecodeSettings("cpu", torch.device("cpu"), threads=1, prefetch=1)


def test_images_of_one_class_alone_are_refused(small_data, tmp_path):
    for split in ("train", "val"):
        first = min((small_data / split).iterdir())
        shutil.copytree(first, tmp_path / "one" / split / first.name)
    with pytest.raises(Reported, match=f"images of one class alone, {first.name}, and a network"):
        train_here(tmp_path / "one", tmp_path)


def test_part_of_a_named_data_set_is_refused_with_what_is_missing(small_data, tmp_path):
    message = (
        r"is not the whole of imagenet-1k: 10 classes instead of 1,000, 50 training images instead "
        r"of 1,281,167, 30 validation images instead of 50,000; .* set data.dataset=null"
    )
    with pytest.raises(Reported, match=message):
        train_here(small_data, tmp_path, "--data.dataset=imagenet-1k")


@pytest.mark.parametrize(
    ("train_top1", "val_top1", "classes", "suspicious"),
    [
        (0.10, 0.001, 1000, True),
        (0.10, 0.05, 1000, False),
        (0.01, 0.001, 1000, False),
        (0.90, 0.0, 10, False),
        (0.20, 0.01, 200, True),
        (0.20, 0.05, 200, False),
    ],
)
def test_labels_in_another_order_are_told_from_an_untrained_network(
    train_top1, val_top1, classes, suspicious
):
    assert labels_look_permuted(train_top1, val_top1, classes) == suspicious


@pytest.fixture(scope="module")
def permuted(tmp_path_factory):
    """A hundred classes, each of one colour; in val, class k holds the images of class k + 37."""
    root = tmp_path_factory.mktemp("permuted")
    for split, images, shift in (("train", 4, 0), ("val", 1, 37)):
        for label in range(100):
            folder = root / split / f"class{label:03d}"
            folder.mkdir(parents=True)
            hue, level = divmod((label + shift) % 100, 10)
            colour = colorsys.hsv_to_rgb(hue / 10, 1.0, 0.1 + level / 11)
            pixels = tuple(round(255 * one) for one in colour)
            for number in range(images):
                Image.new("RGB", (40, 40), pixels).save(folder / f"{number}.JPEG", quality=95)
    return root


def test_labels_of_val_in_another_order_are_warned_of(permuted, tmp_path):
    run = train_here(
        permuted, tmp_path, "--schedule.epochs=12", "--schedule.drop_epochs=[11]",
        "--data.global_batch_size=40", "--data.local_batch_size=40", "--optim.base_lr=0.8",
        "--data.image_size=16", "--data.val_resize=16",
    )  # fmt: skip
    said = (run / "log.txt").read_text()
    assert "the images of val do not lie in their classes' folders" in said
    assert "python -m pipeline.prepare imagenet" in said


@pytest.fixture
def train_set(small_data):
    return open_manifest(small_data, "train")


@pytest.fixture
def read(train_set, monkeypatch):
    """The training images that are read, as they are."""
    images: list[int] = []
    real = train_set.read
    monkeypatch.setattr(train_set, "read", lambda image: images.append(image) or real(image))
    return images


def pixels(train_set):
    return train_set.widths.astype(np.int64) * train_set.heights


def test_the_largest_images_are_the_ones_that_are_decoded_but_for_excluded_ones(
    small_data, tmp_path, train_set, read
):
    config = config_of(small_data, tmp_path, "--data.local_batch_size=4").data
    by_size = [int(image) for image in np.argsort(pixels(train_set), kind="stable")]
    decode_largest(train_set, config, val_passes(config, CPU))
    assert sorted(pixels(train_set)[read]) == sorted(pixels(train_set))[-4:]
    read.clear()
    decode_largest(train_set, config, val_passes(config, CPU), by_size[-2:])
    assert len(read) == 4 and not set(read) & set(by_size[-2:])


def test_a_split_of_which_all_is_excluded_is_refused(tmp_path):
    write_cifar(tmp_path)
    config = DataConfig(dataset="cifar-10", train_crop="padded", image_size=32)
    decode = dataclasses.replace(CPU, decoder="none")
    _, val_set = open_cifar(tmp_path, None)
    everything = range(len(val_set))
    with pytest.raises(ValueError, match=f"^all {len(val_set)} images of val are excluded; repair"):
        decode_largest(val_set, config, val_passes(config, decode), everything)
    decode_largest(val_set, config, val_passes(config, decode), everything[1:])


def test_a_split_of_which_no_file_can_be_used_is_left_for_its_turn(small_data, tmp_path):
    root = copy_data(small_data, tmp_path / "data")
    manifest = open_manifest(root, "train")
    for image in range(len(manifest)):
        path = manifest.path(image)
        path.write_bytes(b"\xff\xd8" + bytes(path.stat().st_size - 2))
    without = range(3, len(manifest))
    config = config_of(root, tmp_path).data
    decode_largest(manifest, config, val_passes(config, CPU), without)


def test_a_decoder_without_memory_is_an_error_with_the_fix(small_data, tmp_path, train_set):
    config = config_of(small_data, tmp_path).data
    # More bytes than any machine has: what a far too large batch comes to.
    huge = dataclasses.replace(config, image_size=2**20, val_resize=2**20)
    message = r"the 8 largest images of train, up to \d+ x \d+ .* lower"
    with pytest.raises(TrainingError, match=message):
        decode_largest(train_set, huge, val_passes(huge, CPU))


def test_a_bad_file_among_the_largest_does_not_end_the_check(small_data, tmp_path):
    root = copy_data(small_data, tmp_path / "data")
    manifest = open_manifest(root, "train")
    path = manifest.path(int(np.argmax(pixels(manifest))))
    path.write_bytes(b"\xff\xd8" + bytes(path.stat().st_size - 2))
    config = config_of(root, tmp_path).data
    huge = dataclasses.replace(config, image_size=2**20, val_resize=2**20)
    with pytest.raises(TrainingError, match="lower data"):
        decode_largest(manifest, huge, val_passes(huge, CPU))
    decode_largest(manifest, config, val_passes(config, CPU))
