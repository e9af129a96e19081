"""Scores averaged over views and networks, and counted over ranks: every image exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.dali import Batch
from pipeline.data.images import PADDING_LABEL, UNREADABLE_LABEL
from pipeline.ranks.world import World
from pipeline.system.failure import TrainingError
from pipeline.train.metrics import Validation, among_five, predicted_classes
from pipeline.train.precision import Precision


@dataclass(frozen=True)
class Network:
    """A network in eval mode and the arithmetic of its forward pass."""

    model: nn.Module
    precision: Precision

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), channels-last -> logits (B, classes) float32."""
        if self.precision.mode == "off":
            images = images.float()  # another member of the ensemble may want float16
        with self.precision.autocast():
            logits: Tensor = self.model(images)
        return logits.float()


@dataclass(frozen=True)
class Counts:
    """The result over all ranks, exact integers but for the mean loss.

    confusion: (classes, classes) int64 on the CPU, images of the row's class that were taken for
    the column's. top5: (classes,) int64, images of each class among whose five best it is.
    unreadable: images that count as wrong unseen; they are not in `confusion`.
    """

    images: int
    confusion: Tensor
    top5: Tensor
    unreadable: int
    loss: float

    @property
    def validation(self) -> Validation:
        """The totals."""
        right = int(self.confusion.diagonal().sum())
        return Validation(self.images, right, int(self.top5.sum()), self.loss)


class Tally:
    """Counts of one rank, kept on the device."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        # Behind the pairs of (label, predicted) stand padding and unreadable images.
        self._pairs = torch.zeros(classes**2 + 2, dtype=torch.int64, device=device)
        self._top5 = torch.zeros(classes + 1, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, scores: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Takes in images by their `scores` (B, classes), greatest best, and `labels` (B,) int64;
        `loss` is the sum over those with a label."""
        classes = self._classes
        predicted = predicted_classes(scores)
        pair = labels * classes + predicted
        pair = pair.masked_fill(labels == PADDING_LABEL, classes**2)
        pair = pair.masked_fill(labels == UNREADABLE_LABEL, classes**2 + 1)
        self._pairs.index_add_(0, pair, torch.ones_like(pair))
        five = among_five(scores, predicted, labels)
        self._top5.index_add_(0, labels.masked_fill(labels < 0, classes), five.long())
        self._loss += loss

    def total(self, world: World, images: int) -> Counts:
        """Collective. The sum over ranks. Raises `Reported` on every rank unless the images counted
        are exactly `images`."""
        classes = self._classes
        pairs = world.sum(self._pairs.cpu())  # host sync
        top5 = world.sum(self._top5.cpu())
        loss = float(world.sum(self._loss.cpu().unsqueeze(0)))
        unreadable = int(pairs[-1])
        seen = int(pairs[: classes**2].sum()) + unreadable
        if seen != images:
            world.raise_together(
                TrainingError(f"the evaluation counted {seen} images, the data set has {images}")
            )
        mean_loss = loss / max(1, images - unreadable)
        confusion = pairs[: classes**2].view(classes, classes)
        return Counts(images, confusion, top5[:classes], unreadable, mean_loss)


def count(
    networks: Sequence[Network], loader: Iterable[Batch], views: int, world: World, tally: Tally,
    images: int,
) -> Counts:  # fmt: skip
    """Collective. Classifies this rank's images and counts over all ranks.

    `loader` gives each chunk of images `views` times in a row, once for each view. An image's score
    is the mean over views and networks of softmax probabilities, in float64; the loss is minus its
    logarithm. A single view of a single network is ranked by its logits, which is what training's
    validation does. Raises `Reported` on every rank if a rank met a bad file, or if the images
    counted are not exactly `images`.
    """
    error: Exception | None = None
    try:
        with torch.no_grad():  # not inference_mode: Horovod cannot resize a tensor made in it
            _count_own(networks, loader, views, world, tally)
    except Exception as caught:  # whatever it is, the other ranks must hear of it
        where = f"(met in the evaluation by rank {world.rank})"
        kind = ValueError if isinstance(caught, ValueError) else TrainingError
        error = kind(f"{caught} {where}")
    world.raise_together(error)
    return tally.total(world, images)


def _count_own(
    networks: Sequence[Network], loader: Iterable[Batch], views: int, world: World, tally: Tally
) -> None:
    summed: Tensor | None = None
    for number, batch in enumerate(loader):
        world.heartbeat.beat("evaluate")
        logits = [network.logits(batch.images) for network in networks]
        if views * len(networks) == 1:
            tally.add(logits[0], batch.labels, _loss(F.log_softmax(logits[0], 1), batch.labels))
            continue
        for one in logits:
            scores = one.double().softmax(dim=1)
            summed = scores if summed is None else summed + scores
        if (number + 1) % views == 0:
            assert summed is not None
            mean = summed / (views * len(networks))
            # The labels of the last view: an image may have turned out to be unreadable by then.
            tally.add(mean, batch.labels, _loss(mean.log(), batch.labels))
            summed = None


def _loss(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """The sum of the cross entropies of the images that have a label, float64."""
    labels = labels.masked_fill(labels < 0, PADDING_LABEL)
    return F.nll_loss(
        log_probabilities, labels, ignore_index=PADDING_LABEL, reduction="sum"
    ).double()
