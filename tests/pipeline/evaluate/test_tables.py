"""Accuracy by class and the confusion matrix, as a spreadsheet would read them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.evaluate.result import Tally, write_confusion, write_per_class

CLASSES = ["n01", "n02", "a, b"]
# Five images; one more of class n02 could not be read, and "a, b" has none.
COUNTS = Tally(3, torch.device("cpu"))
COUNTS.take_in(torch.tensor([*(2, 1, 0), *(0, 1, 1), *(0, 0, 0), 1, *(3, 2, 0)]))


@dataclass
class Images:
    classes: list[str] = field(default_factory=lambda: CLASSES)
    labels: np.ndarray = field(default_factory=lambda: np.array([0, 0, 0, 1, 1, 1], np.int32))


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_accuracy_by_class_counts_unreadable_images_as_wrong(tmp_path):
    path = tmp_path / "classes.csv"
    write_per_class(path, COUNTS, Images(), {"n01": "tench, Tinca tinca"})
    assert rows_of(path) == [
        ["class", "words", "images", "top1_correct", "top5_correct", "top1", "top5"],
        ["n01", "tench, Tinca tinca", "3", "2", "3", str(2 / 3), "1.0"],
        ["n02", "", "3", "1", "2", str(1 / 3), str(2 / 3)],
        ["a, b", "", "0", "0", "0", "", ""],
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
