"""Accuracy by class and the confusion matrix, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.image_set import ImageSet
from pipeline.evaluating.counting import Counts


def write_per_class(path: Path, counts: Counts, val_set: ImageSet, words: dict[str, str]) -> None:
    """One row for each class: name, words, images, integers and shares of top-1 and top-5.

    Images that cannot be read are among a class's images, and wrong. Shares are empty for a class
    without an image.
    """
    classes = val_set.classes
    images = np.bincount(np.asarray(val_set.labels), minlength=len(classes)).tolist()
    right = counts.confusion.diagonal().tolist()
    among_five = counts.top5.tolist()
    rows: list[Sequence[object]] = [
        ("class", "words", "images", "top1_correct", "top5_correct", "top1", "top5")
    ]
    for name, total, top1, top5 in zip(classes, images, right, among_five, strict=True):
        shares = (top1 / total, top5 / total) if total else ("", "")
        rows.append((name, words.get(name, ""), total, top1, top5, *shares))
    _write(path, rows)


def write_confusion(path: Path, counts: Counts, classes: Sequence[str]) -> None:
    """Rows are true classes, columns what the images were taken for.

    Images that cannot be read are in no column.
    """
    matrix = counts.confusion.tolist()
    rows: list[Sequence[object]] = [("class", *classes)]
    rows += [(name, *row) for name, row in zip(classes, matrix, strict=True)]
    _write(path, rows)


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
