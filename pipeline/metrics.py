"""Counting while training and validating, without a host sync in the step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.gpu_memory import GpuMemory


def predicted_classes(scores: Tensor) -> Tensor:
    """(B,) int64: the class of the highest of `scores` (B, classes), of equal ones the first.

    Every count of hits and every name of a mistake begins here: bf16 often gives two classes the
    same score, of which `topk` may name the other one.
    """
    return scores.argmax(dim=1)


def among_five(scores: Tensor, predicted: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool: whether each label is among the five best, of which `predicted` (B,) is one.

    `labels` (B,) int64; never for a negative one. With fewer than five classes all are best.
    """
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    return (best == labels.unsqueeze(1)).any(dim=1) | (predicted == labels)


def correct_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of a batch are right: (2,) int64 on the device, top-1 and top-5.

    `logits` (B, classes), `labels` (B,) int64; a negative label (padding) counts in neither.
    """
    predicted = predicted_classes(logits)
    five = among_five(logits, predicted, labels)
    return torch.stack([(predicted == labels).sum(), five.sum()])


class TrainWindow:
    """Loss and hits of the micro-batches since the last line of metrics.

    Each micro-batch writes one row on the device. Rows come to the host at log and save steps
    only, and are summed there one after the other in float64: a sum that was saved and taken up
    again has the same bits as one that never stopped.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._rows = torch.zeros(rows, 3, device=device)
        self._steps: list[int] = []
        self.sums = torch.zeros(4, dtype=torch.float64)
        """loss * images, top-1 hits, top-5 hits, images: of this rank, since the last line."""
        self._images: list[int] = []
        self.memory = GpuMemory(device)
        self._start()

    @torch.no_grad()
    def add(self, step: int, loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Takes in one micro-batch: mean `loss` (scalar), `logits` (B, classes), `labels` (B,).

        Returns its `correct_counts`.
        """
        counts = correct_counts(logits, labels)
        row = self._rows[len(self._steps)]
        row[0] = loss
        row[1:] = counts
        self._steps.append(step)
        self._images.append(len(labels))
        return counts

    def fold(self) -> tuple[int, float] | None:
        """Brings the rows to the host. Returns (step, loss) of the first non-finite loss."""
        rows = self._rows[: len(self._steps)].tolist()  # host sync
        not_finite = None
        for step, images, (loss, top1, top5) in zip(self._steps, self._images, rows, strict=True):
            if not_finite is None and not math.isfinite(loss):
                not_finite = (step, loss)
            self.sums += torch.tensor([loss * images, top1, top5, images], dtype=torch.float64)
            self._timed_images += images
        self._steps.clear()
        self._images.clear()
        return not_finite

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` of saving or validating out of the speed."""
        self._started += seconds
        self._paused_sec += seconds

    def timings(self) -> Tensor:
        """(3,) float64: images since start or last line, their seconds, and those paused."""
        elapsed = time.perf_counter() - self._started
        return torch.tensor([self._timed_images, elapsed, self._paused_sec], dtype=torch.float64)

    def restart(self) -> None:
        """Begins a new window."""
        self.sums.zero_()
        self._start()

    def start_clock(self) -> None:
        """Begins to measure the speed: the loader is open, and the first step comes next."""
        self.memory.dali_is_ready()
        self._start()

    def _start(self) -> None:
        self._timed_images = 0
        self._paused_sec = 0.0
        self._started = time.perf_counter()


@dataclass(frozen=True)
class Validation:
    """One validation: fractions over exactly `images` images, each counted once.

    `top1_correct` and `top5_correct` are the integer counts; `epoch`, `step` and `position` say
    where in the training it stands.
    """

    images: int
    top1_correct: int
    top5_correct: int
    loss: float
    epoch: int = 0
    step: int = 0
    position: int = 0

    @property
    def top1(self) -> float:
        """Share of images whose best score is their class."""
        return self.top1_correct / self.images

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five best scores."""
        return self.top5_correct / self.images
