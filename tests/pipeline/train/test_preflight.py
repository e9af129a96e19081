"""What is found before the first step, or after the first validation."""

import dataclasses

import numpy as np
import pytest
import torch
from jobs import copy_data
from one_process import config_of, train_here

from pipeline.data.dali import DecodeSettings
from pipeline.data.index.manifest import open_manifest
from pipeline.system.failure import Reported, TrainingError
from pipeline.train.preflight import decode_largest
from pipeline.train.validation import labels_look_permuted

CPU = DecodeSettings("cpu", torch.device("cpu"), threads=1, prefetch=1)


def test_part_of_a_named_data_set_is_refused_with_what_is_missing(small_data, tmp_path):
    message = (
        r"is not the whole of imagenet-1k: 10 classes instead of 1,000, 50 training images instead "
        r"of 1,281,167, 30 validation images instead of 50,000; .* set data.dataset=null"
    )
    with pytest.raises(Reported, match=message):
        train_here(small_data, tmp_path, "--data.dataset=imagenet-1k")


@pytest.mark.parametrize(
    "train_top1, val_top1, classes, suspicious",
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


def test_the_largest_images_are_the_ones_that_are_decoded(small_data, tmp_path, monkeypatch):
    manifest = open_manifest(small_data, "train")
    config = config_of(small_data, tmp_path, "--data.local_batch_size=4").data
    read: list[int] = []
    real = manifest.read
    monkeypatch.setattr(manifest, "read", lambda image: read.append(image) or real(image))
    decode_largest(manifest, config, CPU)
    pixels = manifest.widths.astype(np.int64) * manifest.heights
    assert sorted(pixels[read]) == sorted(pixels)[-4:]


def test_a_decoder_without_memory_is_an_error_with_the_cure(small_data, tmp_path):
    manifest = open_manifest(small_data, "train")
    config = config_of(small_data, tmp_path).data
    # More bytes than any machine has: what a far too large batch comes to.
    with pytest.raises(
        TrainingError, match=r"the 8 largest images of train, up to \d+ x \d+ .* lower"
    ):
        decode_largest(
            manifest, dataclasses.replace(config, image_size=2**20, val_resize=2**20), CPU
        )


def test_a_bad_file_among_the_largest_does_not_end_the_check(small_data, tmp_path):
    root = copy_data(small_data, tmp_path / "data")
    manifest = open_manifest(root, "train")
    largest = int(np.argmax(manifest.widths.astype(np.int64) * manifest.heights))
    path = manifest.path(largest)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    huge = dataclasses.replace(config_of(root, tmp_path).data, image_size=2**20, val_resize=2**20)
    path.write_bytes(b"\xff\xd8" + bytes(path.stat().st_size - 2))
    with pytest.raises(TrainingError, match="lower data"):
        decode_largest(manifest, huge, CPU)
    decode_largest(manifest, config_of(root, tmp_path).data, CPU)


def test_excluded_images_are_not_tried(small_data, tmp_path, monkeypatch):
    manifest = open_manifest(small_data, "train")
    pixels = manifest.widths.astype(np.int64) * manifest.heights
    out = [int(i) for i in np.argsort(pixels)[-2:]]
    read: list[int] = []
    real = manifest.read
    monkeypatch.setattr(manifest, "read", lambda image: read.append(image) or real(image))
    config = config_of(small_data, tmp_path, "--data.local_batch_size=4").data
    decode_largest(manifest, config, CPU, out)
    assert len(read) == 4 and not set(read) & set(out)
