"""Counts by class of an evaluation, and the files it writes: scores as JSON, tables by class."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import names_for, names_of
from pipeline.config.idle import idle_settings
from pipeline.data.dali import Batch
from pipeline.data.images import UNREADABLE_LABEL, ImageSet
from pipeline.evaluate.members import Member
from pipeline.evaluate.protocol import PAPER_SCALES, Request, ViewProtocol
from pipeline.system.files import write_text
from pipeline.system.machine import versions
from pipeline.train.folder import EVALUATION, run_of
from pipeline.train.metrics import Validation, among_five, counts_top5, predicted_classes

SCORES = (
    "mean of softmax probabilities over views and checkpoints; within a view of the whole image "
    "the score map is averaged before the softmax; a single view of a single checkpoint is ranked "
    "by its logits; loss is minus the logarithm of the mean probability"
)

_DATA = ("root", "dataset", "image_size", "val_size", "val_resize", "output")
"""Settings of the data in a result."""


class Tally:
    """Counts by class, as an observer of `validation.count`; after it they are of all ranks.

    confusion: (classes, classes) int64 on the CPU, images of the row's class that were predicted
    as the column's. top5: (classes,) int64, images of each class among whose five best it is; None
    where `counts_top5` says no.
    unreadable: images that count as wrong unseen; they are not in `confusion`.
    """

    confusion: Tensor
    top5: Tensor | None
    unreadable: int

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes, self._top5 = classes, counts_top5(classes)
        # Pairs of (label, predicted), unreadable images, top-5 by class, and what counts nowhere.
        size = classes**2 + 1 + (classes if self._top5 else 0) + 1
        self._counts = torch.zeros(size, dtype=torch.int64, device=device)

    def add(self, batch: Batch, scores: Tensor) -> None:
        """Counts images by their `scores` (B, classes), the highest best."""
        classes, labels = self._classes, batch.labels
        unreadable, nowhere = classes**2, len(self._counts) - 1
        predicted = predicted_classes(scores)
        pair = (labels * classes + predicted).masked_fill(labels < 0, nowhere)
        pair = pair.masked_fill(labels == UNREADABLE_LABEL, unreadable)
        found = pair
        if self._top5:
            five = among_five(scores, predicted, labels)
            in_five = (unreadable + 1 + labels).masked_fill(~five, nowhere)
            found = torch.cat([pair, in_five])
        self._counts.index_add_(0, found, torch.ones_like(found))

    def counts(self) -> Tensor:
        """This rank's, (classes**2 + 1 + classes,) int64 on the CPU, or without the last `classes`.
        A host sync."""
        return self._counts[:-1].cpu()

    def take_in(self, everyone: Tensor) -> None:
        """Sets the counts to `counts`, summed over ranks."""
        pairs = self._classes**2
        self.confusion = everyone[:pairs].view(self._classes, self._classes)
        self.unreadable = int(everyone[pairs])
        self.top5 = everyone[pairs + 1 :] if self._top5 else None


def describe(
    members: Sequence[Member], request: Request, totals: Validation, unreadable: int,
    data_hash: str, other_data: bool,
) -> dict[str, Any]:  # fmt: skip
    """The result as JSON holds it: what was tested, how, and the exact counts.

    `data_hash` is that of the images, and `other_data` whether they do not belong to the data of
    the training; the result also holds the hash of the images that the training validated on.
    """
    first, protocol = members[0], request.protocol
    run = run_of(first.path)
    data = first.config.data
    return {
        "protocol": protocol.name,
        "mirror": protocol.mirror,
        "scales": list(protocol.scales),
        "views": len(protocol.views(first.config)),
        "ensemble": [str(member.path) for member in members],
        "bn_images": request.bn_images,
        "test_images": request.test_images,
        "changed": changed(members, protocol),
        "weights": [member.trained.digest for member in members],
        "weights_kind": [member.trained.kind for member in members],
        "checkpoint": str(first.path),
        "run": run.path.name if run else None,
        "step": first.trained.step,
        "config": {
            "model": dataclasses.asdict(first.config.model),
            "amp": first.config.optim.amp,
            "data": {name: getattr(data, name) for name in _DATA},
        },
        "data_hash": data_hash,
        "other_data": other_data,
        "training_data_hash": first.trained.fingerprint.get("data hash of val"),
        "images": totals.images,
        "unreadable": unreadable,
        **totals.accuracies,
        "top1_correct": totals.top1_correct,
        **({} if totals.top5_correct is None else {"top5_correct": totals.top5_correct}),
        "loss": totals.loss,
        "scores": SCORES,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def changed(members: Sequence[Member], protocol: ViewProtocol) -> dict[str, Any]:
    """The settings, with their values, by which the numbers can differ from those of the training's
    settings: as `part.name`, where any member was trained with another value.

    The numbers depend on the settings that a checkpoint is held to; others only say how and where
    it runs.
    """
    config = members[0].config
    held = set(names_of("identity", "kept"))
    idle = set(idle_settings(config.values()))
    if protocol.fully_convolutional:
        idle.add("data.val_resize")
    return {
        name: config.get(name)
        for name in names_for("evaluate")
        if name in held - idle
        and any(m.config.get(name) != m.trained.config.get(name) for m in members)
    }


def file_name(result: dict[str, Any]) -> str:
    """`evaluate-<protocol>.json`; what differs from the plain protocol, with the settings of the
    training on its data, is part of the name. The checkpoint is not: see `step` and `weights`."""
    words = [result["protocol"]]
    if result["scales"] and tuple(result["scales"]) != PAPER_SCALES:
        words += [str(scale) for scale in result["scales"]]
    words += ["mirror"] if result["mirror"] else []
    words += [f"ensemble-of-{len(result['ensemble'])}"] if len(result["ensemble"]) > 1 else []
    words += ["raw"] if "raw" in result["weights_kind"] else []
    words += [] if result["bn_images"] is None else [f"bn-{result['bn_images']}"]
    words += ["test-images"] if result["test_images"] else []
    words += [f"{name.partition('.')[2]}-{value}" for name, value in result["changed"].items()]
    words += [f"data-{result['data_hash'][:8]}"] if result["other_data"] else []
    return EVALUATION.format("-".join(words))


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes `result` as one line."""
    write_text(path, json.dumps(result) + "\n")


def write_per_class(path: Path, counts: Tally, val_set: ImageSet, words: dict[str, str]) -> None:
    """One row for each class: name, words, images, integers and shares of top-1, and of top-5 where
    that is counted.

    Images that cannot be read are among a class's images, and wrong. Shares are empty for a class
    without an image.
    """
    classes = val_set.classes
    images = np.bincount(np.asarray(val_set.labels), minlength=len(classes)).tolist()
    hits = {"top1": counts.confusion.diagonal().tolist()}
    hits |= {} if counts.top5 is None else {"top5": counts.top5.tolist()}
    rows: list[Sequence[object]] = [
        ("class", "words", "images", *(f"{name}_correct" for name in hits), *hits)
    ]
    for name, total, *correct in zip(classes, images, *hits.values(), strict=True):
        shares = [count / total if total else "" for count in correct]
        rows.append((name, words.get(name, ""), total, *correct, *shares))
    _write(path, rows)


def write_confusion(path: Path, counts: Tally, classes: Sequence[str]) -> None:
    """Writes the confusion matrix: rows are true classes, columns predicted ones.

    Images that cannot be read are in no column.
    """
    matrix = counts.confusion.tolist()
    rows: list[Sequence[object]] = [("class", *classes)]
    rows += [(name, *row) for name, row in zip(classes, matrix, strict=True)]
    _write(path, rows)


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    table = io.StringIO(newline="")
    csv.writer(table).writerows(rows)
    write_text(path, table.getvalue())
