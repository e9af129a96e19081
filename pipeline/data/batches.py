"""The positions of a step and of each rank: steps, ranks, micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.system.console import counted


def split_global_batch(
    global_batch_size: int, local_batch_size: int, world_size: int
) -> tuple[int, int]:
    """Return (micro-batch size, accumulation): the fewest equal micro-batches that fit a rank.

    The micro-batch holds at most `local_batch_size` images, and micro-batch * accumulation *
    world_size equals `global_batch_size`. ValueError if the global batch cannot be shared equally
    by the ranks, or only in micro-batches less than half as large as they could be.
    """
    sizes = global_batch_size, local_batch_size, world_size
    assert min(sizes) >= 1, f"each of {sizes} must be at least 1"
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        below, above = share * world_size, (share + 1) * world_size
        nearest = f"nearest that are: {below} and {above}" if below else f"nearest that is: {above}"
        raise ValueError(
            f"data.global_batch_size={global_batch_size} is not divisible by {world_size} ranks; "
            f"the {nearest}"
        )
    fewest = accumulation = -(-share // local_batch_size)
    while share % accumulation:
        accumulation += 1
    if accumulation > 2 * fewest:
        # A prime share would go image by image, which batch normalisation cannot use.
        part = fewest * world_size
        near = round(global_batch_size / part) * part
        raise ValueError(
            f"data.global_batch_size={global_batch_size} leaves {counted(world_size, 'rank')} only "
            f"micro-batches of {share // accumulation} under data.local_batch_size="
            f"{local_batch_size}; the nearest that splits well is {near}"
        )
    return share // accumulation, accumulation


@dataclass(frozen=True)
class Partition:
    """The positions that a rank takes in each step.

    Step t is cut into G / b chunks of b consecutive positions; rank r runs chunks rA .. (r+1)A -
    1 in order (A = accumulation). With the same b the chunks, and so the groups that batch
    normalisation sees, are the same sets at every world size.
    """

    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        whole = self.global_batch_size % (self.micro_batch_size * self.world_size) == 0
        assert whole and 0 <= self.rank < self.world_size, f"{self}; see `split_global_batch`"

    @property
    def accumulation(self) -> int:
        """Micro-batches each rank runs in a step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def positions(self, step: int, micro: int) -> NDArray[np.int64]:
        """Return the positions (b,) int64 of this rank's micro-batch `micro` of `step`."""
        assert 0 <= micro < self.accumulation, f"micro-batch {micro} of {self.accumulation}"
        chunk = self.rank * self.accumulation + micro
        start = step * self.global_batch_size + chunk * self.micro_batch_size
        return np.arange(start, start + self.micro_batch_size, dtype=np.int64)


def total_steps(epochs: float, num_images: int, global_batch_size: int) -> int:
    """Return ceil(epochs * N / G), exact: 0.1 means one tenth, not the nearest binary number."""
    return math.ceil(Fraction(str(epochs)) * num_images / global_batch_size)


@dataclass(frozen=True)
class Course:
    """A run of `total_steps` over epochs of `images`, `batch` images a step; steps count from 0.

    An epoch is validated after the first step with which it is complete.
    """

    images: int
    batch: int
    total_steps: int

    def position(self, step: int) -> int:
        """Images consumed by the whole job before `step`."""
        return step * self.batch

    def epoch(self, step: int) -> int:
        """Epoch, from 0, of the step before `step`."""
        return self.epochs_done(max(0, step - 1))

    def epochs_done(self, step: int) -> int:
        """Whole epochs before `step`."""
        return self.position(step) // self.images

    def next_validation(self, step: int) -> int:
        """The first step after `step` before which an epoch, or the run, is complete."""
        images = (self.epochs_done(step) + 1) * self.images
        return min(-(-images // self.batch), self.total_steps)

    def validation_due(self, step: int, validated: int) -> bool:
        """Whether an epoch, or the run, has been completed before `step` since the last validation,
        which was before step `validated` (0: never)."""
        at_the_end = step == self.total_steps and validated != step
        return at_the_end or self.epochs_done(step) > self.epochs_done(validated)


class Epochs(Protocol):
    """A rank's batches, numbered without an end; each epoch has those that follow on from the
    epoch's before."""

    def first(self, epoch: int) -> int:
        """The number of the first batch of `epoch`."""

    def positions(self, number: int) -> NDArray[np.int64]:
        """The positions (B,) int64 of batch `number`."""

    def position(self, number: int) -> int:
        """The position at which batch `number` begins: in training that of its step, the same for
        all ranks."""


@dataclass(frozen=True)
class StepEpochs:
    """Micro-batches over epochs of `images`; all are full.

    As a training runs them, the images that are left over when an epoch ends are in the first step
    of the next: an epoch has the steps whose first image is its own, as many as fit or one more.
    With `drop_last` every epoch begins with its own first image and leaves out what fills no step.
    """

    images: int
    partition: Partition
    drop_last: bool = False

    @property
    def _own(self) -> int:
        """Steps of an epoch that begins anew."""
        return self.images // self.partition.global_batch_size

    def first(self, epoch: int) -> int:
        """The number of the first micro-batch of `epoch`."""
        steps = -(-epoch * self.images // self.partition.global_batch_size)
        return (epoch * self._own if self.drop_last else steps) * self.partition.accumulation

    def positions(self, number: int) -> NDArray[np.int64]:
        """The positions (B,) int64 of micro-batch `number`."""
        step, micro = divmod(number, self.partition.accumulation)
        return self.partition.positions(0, micro) + self._begin(step)

    def position(self, number: int) -> int:
        """The position at which the step of micro-batch `number` begins."""
        return self._begin(number // self.partition.accumulation)

    def _begin(self, step: int) -> int:
        if not self.drop_last:
            return step * self.partition.global_batch_size
        epoch, own = divmod(step, self._own)
        return epoch * self.images + own * self.partition.global_batch_size


@dataclass(frozen=True)
class ValidationEpochs:
    """The batches of a rank that validates, the same in each epoch: every image once over all
    ranks. The last batch of the images may be short, and ranks differ by a batch at most."""

    images: int
    batch_size: int
    rank: int
    world_size: int

    @property
    def chunks(self) -> range:
        """This rank's, of `batch_size` images each."""
        return validation_chunks(self.images, self.batch_size, self.rank, self.world_size)

    def first(self, epoch: int) -> int:
        """The number of the first batch of `epoch`."""
        return epoch * len(self.chunks)

    def positions(self, number: int) -> NDArray[np.int64]:
        """The positions (B,) int64 of batch `number`."""
        begin = self.position(number)
        return np.arange(begin, min(begin + self.batch_size, self.images), dtype=np.int64)

    def position(self, number: int) -> int:
        """The position at which batch `number` begins."""
        chunks = self.chunks
        return chunks[number % len(chunks)] * self.batch_size if chunks else 0


def validation_chunks(num_images: int, batch_size: int, rank: int, world_size: int) -> range:
    """Return the chunks a rank validates; chunk c is images [cb, min((c+1)b, N)).

    The ranges are contiguous, differ in length by at most one and cover each of the ceil(N / b)
    exactly once. A rank gets none when there are fewer chunks than ranks.
    """
    chunks = -(-num_images // batch_size)
    return range(rank * chunks // world_size, (rank + 1) * chunks // world_size)
