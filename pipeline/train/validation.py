"""Exact validation: every image counts once, on any number of ranks.

Besides the counts, an `ErrorAnalysis` finds which classes fail, and the most confident mistakes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.dali import Batch
from pipeline.data.images import PADDING_LABEL, UNREADABLE_LABEL, ImageSet
from pipeline.model.norm import swapped_statistics
from pipeline.ranks.world import World
from pipeline.system.failure import TrainingError
from pipeline.train.metrics import (
    Validation,
    balanced_top1,
    correct_counts,
    counts_top5,
    predicted_classes,
)
from pipeline.train.precision import Precision

if TYPE_CHECKING:  # evaluate and predict need neither
    from pipeline.train.loaders import Loaders
    from pipeline.train.state import TrainState

_MISTAKES = 15  # five rows of three

log = logging.getLogger("trainyard")

# Accuracies, 1/C being that of a guess: what a network has surely learned and what it surely has
# not. With few classes a bad first epoch looks the same.
_LEARNED, _GUESSED = 10, 3
_MANY_CLASSES = 100


class ErrorAnalysis:
    """Hits by class and the most confident mistakes of one validation, without a host sync per
    batch.

    It changes no count, and its hits sum up to the top-1 count. `hits` and `images` (classes,)
    int64 are of all ranks once `take_in` was called. Mistakes are the wrong answers of the highest
    probability, on ranks with `keep_mistakes` only: `mistakes` has this rank's.
    """

    def __init__(self, classes: int, keep_mistakes: bool, device: torch.device) -> None:
        self._keep_mistakes = keep_mistakes
        self._counts = torch.zeros(2, classes, dtype=torch.int64, device=device)
        self._kept: tuple[Tensor, ...] | None = None
        self.hits = self.images = torch.zeros(classes, dtype=torch.int64)

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Adds a batch and its logits (B, classes) float32; labels below 0 count nowhere."""
        real = batch.labels >= 0
        labels = batch.labels.clamp(min=0)
        predicted = predicted_classes(logits)
        right = (predicted == batch.labels) & real
        self._counts[0].scatter_add_(0, labels, right.long())
        self._counts[1].scatter_add_(0, labels, real.long())
        if self._keep_mistakes:
            # Not softmax's own maximum: rounded to equal shares it may name the true class.
            shares = F.softmax(logits, dim=1).gather(1, predicted.unsqueeze(1)).squeeze(1)
            self._keep(batch, predicted, shares, real & ~right)

    def _keep(self, batch: Batch, predicted: Tensor, probability: Tensor, wrong: Tensor) -> None:
        score = torch.where(wrong, probability, -1.0)
        best = score.topk(min(_MISTAKES, len(score))).indices
        found = (score, predicted, batch.labels, batch.images)
        mine = tuple(values[best] for values in found)
        if self._kept is not None:  # the earlier ones first: they stay where scores are equal
            mine = tuple(torch.cat(pair) for pair in zip(self._kept, mine, strict=True))
            order = mine[0].argsort(descending=True, stable=True)[:_MISTAKES]
            mine = tuple(values[order] for values in mine)
        self._kept = mine

    def counts(self) -> Tensor:
        """This rank's hits and images by class, (2 * classes,) int64 on the CPU. A host sync."""
        return self._counts.flatten().cpu()

    def take_in(self, everyone: Tensor) -> None:
        """Sets the counts to `counts`, summed over ranks."""
        self.hits, self.images = everyone.view(2, -1)

    def mistakes(self) -> tuple[Tensor, list[tuple[int, int, float]]]:
        """This rank's mistakes, the most confident first: images (n, 3, H, W) as the network gets
        them, and of each (label, predicted, probability). A host sync."""
        if self._kept is None:
            return torch.empty(0, 3, 1, 1), []
        scores, predicted, labels, images = self._kept
        wrong = int((scores >= 0).sum())
        rows = zip(labels.tolist(), predicted.tolist(), scores.tolist(), strict=True)
        return images[:wrong], list(rows)[:wrong]

    def class_top1(self) -> dict[str, float]:
        """`class_top1_worst`, `_median` and `_best`: shares over the classes with images."""
        some = self.images > 0
        shares = (self.hits[some].double() / self.images[some]).sort().values
        if not len(shares):
            return {}
        return {
            "class_top1_worst": float(shares[0]),
            "class_top1_median": float(shares.median()),
            "class_top1_best": float(shares[-1]),
        }


def labels_by_class(images: ImageSet) -> Tensor:
    """The number of images of each class, (classes,) int64 on the CPU; excluded ones are of it."""
    labels = np.asarray(images.labels)
    return torch.from_numpy(np.bincount(labels, minlength=len(images.classes)))


Scored = tuple[Batch, Tensor, Tensor]
"""A batch, its scores (B, classes), the greatest best, and its log-probabilities (B, classes)."""


class Observer(Protocol):
    """Sees the batches that a rank counts, and gets the sum over ranks."""

    def add(self, batch: Batch, scores: Tensor) -> None:
        """Adds a batch and its scores (B, classes), without a host sync."""

    def counts(self) -> Tensor:
        """This rank's counts, (n,) int64 on the CPU, n alike on all ranks. A host sync."""

    def take_in(self, everyone: Tensor) -> None:
        """Sets the counts to `counts`, summed over ranks."""


def validate_state(
    state: TrainState, loaders: Loaders, val_set: ImageSet, world: World, analysis: ErrorAnalysis
) -> tuple[Validation, float]:
    """Collective. Validates the weights of `state`, in eval mode then, and in a second pass their
    moving average if there is one. The loader's graph serves both.

    `analysis` is of the weights themselves. Returns the result, and the `spread` over ranks of BN's
    statistics, whose mean is what was validated. Changes nothing of the training but what of
    `val_set` is excluded.
    """

    def counted(model: nn.Module, observer: ErrorAnalysis | None) -> Validation:
        found = validate(
            model, loader, state.precision, world, len(val_set), len(val_set.classes), observer
        )
        state.excluded.met_in_validation(loader.found, world)
        return found

    loader = loaders.val()  # it decodes while statistics are gathered
    average, spread = state.average_statistics(world)
    state.model.eval()
    with swapped_statistics(state.model, average):
        result = counted(state.forward, analysis)
    balanced = balanced_top1(analysis.hits, labels_by_class(val_set))
    result = dataclasses.replace(result, balanced_top1=balanced)
    if state.ema is not None:
        loader = loaders.val()
        with state.ema.over_ranks(state.step, world) as network:
            result = dataclasses.replace(result, ema=counted(network, None))
    return result, spread


def validate(
    model: nn.Module, loader: Iterable[Batch], precision: Precision, world: World, images: int,
    classes: int, analysis: ErrorAnalysis | None = None,
) -> Validation:  # fmt: skip
    """Collective. Counts the answers of `model`, in eval mode, on this rank's batches; see
    `count`."""

    def scored() -> Iterator[Scored]:
        for batch in loader:
            world.heartbeat.beat("validation")
            logits = logits_of(model, precision, batch.images)
            yield batch, logits, F.log_softmax(logits, dim=1)

    # While it lasts, autocast keeps the weights that it casts: once for all batches, not for each.
    with precision.autocast():
        return count(scored(), world, images, classes, "validation", analysis)


def logits_of(model: nn.Module, precision: Precision, images: Tensor) -> Tensor:
    """Images (B, 3, H, W), channels-last -> logits (B, classes) float32."""
    if precision.mode in ("off", "tf32"):
        images = images.float()  # another network of an ensemble may need float16
    with precision.autocast():
        logits: Tensor = model(images)
    return logits.float()


@torch.no_grad()  # not inference_mode: Horovod cannot resize a tensor made in it
def count(
    scored: Iterable[Scored], world: World, images: int, classes: int, during: str,
    observer: Observer | None = None,
) -> Validation:  # fmt: skip
    """Collective. Counts over this rank's batches, summed once as integers over ranks.

    Padding (label -1) counts nowhere; an image that cannot be read (label -2) counts as wrong and
    has no part in the mean loss. `observer` sees every batch, and its counts are summed with
    these. `during` names the counting in errors. Top-5 is counted if that says anything of
    `classes`.

    Raises `Reported` on every rank if a rank met a bad file, or if the images counted are not
    exactly `images`.
    """
    counts: Tensor | None = None
    loss: Tensor | None = None
    error: Exception | None = None
    try:
        for batch, scores, log_probabilities in scored:
            with torch.autocast(scores.device.type, enabled=False):  # no part of the network
                if observer is not None:
                    observer.add(batch, scores)
                batch_counts, batch_loss = _counts_of(batch, scores, log_probabilities)
            counts = batch_counts if counts is None else counts + batch_counts
            loss = batch_loss if loss is None else loss + batch_loss
    except Exception as caught:  # whatever it is, the other ranks must know
        kind = ValueError if isinstance(caught, ValueError) else TrainingError
        error = kind(f"{caught} (met in {during} by rank {world.rank})")
    world.raise_together(error)
    hits = 2 if counts_top5(classes) else 1
    mine = torch.zeros(hits + 2, dtype=torch.int64) if counts is None else counts.cpu()  # host sync
    my_loss = torch.zeros((), dtype=torch.float64) if loss is None else loss.cpu()
    if observer is not None:
        mine = torch.cat([mine, observer.counts()])
    everyone = world.sum(mine)
    *correct, seen, unreadable_images = everyone[: hits + 2].tolist()
    if observer is not None:
        observer.take_in(everyone[hits + 2 :])
    total_loss = float(world.sum(my_loss.unsqueeze(0)))
    if seen != images:
        world.raise_together(
            TrainingError(f"{during} counted {seen} images, the data set has {images}")
        )
    top1, top5 = correct if counts_top5(classes) else (*correct, None)
    return Validation(images, top1, top5, total_loss / max(1, images - unreadable_images))


def _counts_of(batch: Batch, scores: Tensor, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """`correct_counts`, images and unreadable ones of a batch, int64, and the sum of its losses,
    float64; on the device."""
    real = (batch.labels != PADDING_LABEL).sum().unsqueeze(0)
    unreadable = (batch.labels == UNREADABLE_LABEL).sum().unsqueeze(0)
    counts = torch.cat([correct_counts(scores, batch.labels), real, unreadable])
    with_loss = batch.labels.masked_fill(batch.labels < 0, PADDING_LABEL)
    loss = F.nll_loss(log_probabilities, with_loss, ignore_index=PADDING_LABEL, reduction="sum")
    return counts, loss.double()


def labels_look_permuted(train_top1: float, val_top1: float, classes: int) -> bool:
    """Whether a network that has learned its training labels does no better than guessing on val.

    Both are fractions. Labels of val in another order look like this: the archives number classes
    in another order than the sorted names.
    """
    learned, guessed = max(0.05, _LEARNED / classes), _GUESSED / classes
    return classes >= _MANY_CLASSES and train_top1 > learned and val_top1 < guessed


def require_learning(result: Validation, train_top1: float, classes: int, world: World) -> None:
    """Collective. Ends a run whose validation loss is not finite; warns where a network that learns
    its training labels, `train_top1` of them, does no better in validation than guessing."""
    losses = [one.loss for one in (result, result.ema) if one is not None]
    if bad := [loss for loss in losses if not math.isfinite(loss)]:
        world.raise_together(
            TrainingError(
                f"the validation loss is {bad[0]} before step {result.step}; the training has "
                "diverged: lower optim.base_lr or lengthen schedule.warmup_epochs"
            )
        )
    if labels_look_permuted(train_top1, result.top1, classes):
        log.warning(
            "warning: top-1 is %.1f%% on training images and %.2f%% in validation, no better than "
            "guessing: the images of val do not lie in their classes' folders; relabel them, "
            "for ImageNet with python -m pipeline.prepare imagenet",
            100 * train_top1, 100 * result.top1,
        )  # fmt: skip
