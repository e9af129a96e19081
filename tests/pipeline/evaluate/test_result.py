"""The files of a result: what its numbers depend on is part of the name; tables as a spreadsheet
would read them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from weight_files import made_member

from pipeline.config import DataConfig
from pipeline.evaluate.protocol import PAPER_SCALES, ViewProtocol
from pipeline.evaluate.result import Tally, changed, file_name, write_confusion, write_per_class

ONE_CROP, MULTI = ViewProtocol(), ViewProtocol("multi-scale", PAPER_SCALES)
CIFAR = DataConfig(dataset="cifar-10", train_crop="padded", image_size=32)
PLAIN: dict[str, Any] = {
    "protocol": "1-crop", "scales": [], "mirror": False, "ensemble": ["a.pt"], "bn_images": None,
    "test_images": False, "weights_kind": [None], "changed": {}, "data_hash": "0123456789abcdef",
    "other_data": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "protocol", "found"),
    [
        ((), ONE_CROP, {}),
        (("--data.image_size=256",), ONE_CROP, {"data.image_size": 256}),
        (("--data.image_size=224", "--optim.amp=bf16"), ONE_CROP, {}),  # as in the training
        (("--data.val_resize=320",), ONE_CROP, {"data.val_resize": 320}),
        (("--data.val_resize=320",), MULTI, {}),  # whole images
        (("--data.image_size=192",), MULTI, {"data.image_size": 192}),
        (("--optim.amp=off",), ONE_CROP, {"optim.amp": "off"}),
        (("--data.output=uint8",), ONE_CROP, {"data.output": "uint8"}),
        (("--data.local_batch_size=8", "--data.threads=1", "--run.device=cpu",
          "--model.norm=reference", "--data.root=/elsewhere"), ONE_CROP, {}),
    ],
)  # fmt: skip
def test_what_changes_the_numbers_is_told_from_how_they_are_computed(options, protocol, found):
    assert changed([made_member("a.pt", *options)], protocol) == found


def test_a_setting_without_effect_is_no_change():
    assert changed([made_member("a.pt", "--data.val_resize=64", data=CIFAR)], ONE_CROP) == {}


def test_a_change_for_any_member_of_an_ensemble_is_one():
    large, option = DataConfig(val_resize=320), "--data.val_resize=256"
    members = [made_member("a.pt", option), made_member("a.pt", option, data=large)]
    assert changed(members, ONE_CROP) == {"data.val_resize": 256}
    assert changed(members[:1], ONE_CROP) == {}


@pytest.mark.parametrize(
    ("difference", "name"),
    [
        ({}, "evaluate-1-crop"),
        ({"changed": {"data.image_size": 256}}, "evaluate-1-crop-image_size-256"),
        ({"changed": {"data.val_resize": 320, "optim.amp": "off"}},
         "evaluate-1-crop-val_resize-320-amp-off"),
        ({"other_data": True}, "evaluate-1-crop-data-01234567"),
        ({"protocol": "multi-scale", "scales": list(PAPER_SCALES), "mirror": True},
         "evaluate-multi-scale-mirror"),
        ({"protocol": "multi-scale", "scales": [224, 256]}, "evaluate-multi-scale-224-256"),
        ({"bn_images": 40, "test_images": True}, "evaluate-1-crop-bn-40-test-images"),
        ({"ensemble": ["a.pt", "b.pt"]}, "evaluate-1-crop-ensemble-of-2"),
        ({"weights_kind": ["ema"]}, "evaluate-1-crop"),
        ({"ensemble": ["a.pt", "b.pt"], "weights_kind": ["raw", None], "bn_images": 40},
         "evaluate-1-crop-ensemble-of-2-raw-bn-40"),
    ],
    ids=str,
)  # fmt: skip
def test_results_that_differ_lie_in_files_of_their_own(difference, name):
    assert file_name(PLAIN | difference) == f"{name}.json"


CLASSES = ["n01", "n02", "a, b"]
# Five images; one more of class n02 could not be read, and "a, b" has none.
COUNTS = Tally(3, torch.device("cpu"))
COUNTS.take_in(torch.tensor([*(2, 1, 0), *(0, 1, 1), *(0, 0, 0), 1]))
# The same with three more classes that have no image, so that top-5 counts.
SIX = Tally(6, torch.device("cpu"))
SIX.take_in(
    torch.tensor([*(2, 1, 0, 0, 0, 0), *(0, 1, 1, 0, 0, 0), *[0] * 24, 1, *(3, 2, 0, 0, 0, 0)])
)


@dataclass
class Images:
    classes: list[str] = field(default_factory=lambda: CLASSES)
    labels: np.ndarray = field(default_factory=lambda: np.array([0, 0, 0, 1, 1, 1], np.int32))


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_accuracy_by_class_counts_unreadable_images_as_wrong(tmp_path):
    path, six = tmp_path / "classes.csv", Images([*CLASSES, "d", "e", "f"])
    write_per_class(path, SIX, six, {"n01": "tench, Tinca tinca"})
    assert rows_of(path)[:4] == [
        ["class", "words", "images", "top1_correct", "top5_correct", "top1", "top5"],
        ["n01", "tench, Tinca tinca", "3", "2", "3", str(2 / 3), "1.0"],
        ["n02", "", "3", "1", "2", str(1 / 3), str(2 / 3)],
        ["a, b", "", "0", "0", "0", "", ""],
    ]


def test_accuracy_by_class_has_no_top5_of_few_classes(tmp_path):
    path = tmp_path / "classes.csv"
    write_per_class(path, COUNTS, Images(), {})
    assert rows_of(path) == [
        ["class", "words", "images", "top1_correct", "top1"],
        ["n01", "", "3", "2", str(2 / 3)],
        ["n02", "", "3", "1", str(1 / 3)],
        ["a, b", "", "0", "0", ""],
    ]


def test_the_confusion_matrix_has_true_classes_in_rows(tmp_path):
    path = tmp_path / "confusion.csv"
    write_confusion(path, COUNTS, CLASSES)
    assert rows_of(path) == [
        ["class", *CLASSES],
        ["n01", "2", "1", "0"],
        ["n02", "0", "1", "1"],
        ["a, b", "0", "0", "0"],
    ]
