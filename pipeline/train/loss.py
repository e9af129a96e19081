"""What a step minimises: the loss of mixed images against their labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Config, OptimConfig
from pipeline.data.batches import Partition
from pipeline.data.dali import Batch
from pipeline.data.images import ImageSet
from pipeline.data.index.survey import name_few
from pipeline.train.mixing import Mixing, Targets


class Objective:
    """How a run mixes its images (`Mixing`), and their `Loss`. Built alike on all ranks.

    Raises `ValueError` if micro-batches are too small to mix, or if a class without images is to
    be weighted.
    """

    def __init__(
        self, config: Config, train_set: ImageSet, partition: Partition, device: torch.device
    ) -> None:
        self.mixing = Mixing(config.data, config.run.seed, partition)
        weights: Tensor | None = None
        if config.optim.class_weights == "balanced":
            weights = torch.from_numpy(balanced_weights(train_set.labels, train_set.classes))
            weights = weights.float().to(device)
        self.loss = Loss(config.optim, weights)

    def mixed(self, batch: Batch) -> tuple[Tensor, Targets]:
        """The images that the network sees and their targets, without a host sync."""
        return self.mixing(batch)


class Loss:
    """The mean loss of a micro-batch, as `optim.loss` and `optim.label_smoothing` say.

    An image's loss is multiplied by the entry of `weights` (classes,) for its label, a mixed one's
    two parts each by that for its own, and the sum is divided by the number of images, never by the
    sum of weights: so the mean over micro-batches and ranks is that of the whole batch.
    """

    def __init__(self, optim: OptimConfig, weights: Tensor | None = None) -> None:
        self._kind, self._smoothing, self._weights = optim.loss, optim.label_smoothing, weights

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        """The loss, a scalar on the device, of logits (B, classes). No host sync."""
        own = self._of(logits, targets.labels)
        if targets.partners is None:
            return own
        # Both losses are linear in the target, so this is the loss of the mixed one.
        share = targets.share
        return share * own + (1 - share) * self._of(logits, targets.partners)

    def _of(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._kind == "cross_entropy" and self._weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        each = self._of_each(logits.float(), labels)
        if self._weights is not None:
            each = each * self._weights[labels]
        return each.mean()

    def _of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image, (B,)."""
        smoothing, classes = self._smoothing, logits.shape[1]
        if self._kind == "cross_entropy":
            return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        numbers = torch.arange(classes, device=logits.device)
        target = (labels.unsqueeze(1) == numbers) * (1 - smoothing) + smoothing / classes
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


def balanced_weights(labels: NDArray[np.int32], classes: Sequence[str]) -> NDArray[np.float64]:
    """The weight of each class, (classes,): n / (classes * n_c), as scikit-learn's "balanced" has
    it, for `labels` (n,). Their mean over the images is 1.

    Raises `ValueError` for a class without images.
    """
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise ValueError(
            "optim.class_weights=balanced divides by the number of training images of each class, "
            f"which is 0 for {name_few(empty)}; add images, take the class out of the data set, or "
            "set optim.class_weights=none"
        )
    return np.asarray(len(labels) / (len(classes) * counts), dtype=np.float64)
