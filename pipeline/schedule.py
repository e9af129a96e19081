"""The learning rate as a pure function of position (images consumed so far) and history.

`history` is the top-1 error of every validation so far, in order, each a fraction. Nothing here
holds state: a checkpoint needs the position and the history, and no schedule object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def scaled_lr(base_lr: float, global_batch_size: int) -> float:
    """The peak lr of a global batch, linear in its size; `base_lr` is that of 256 images.

    Source: the linear scaling rule, Goyal et al. 2017, section 2.1.
    """
    return base_lr * global_batch_size / 256


@dataclass(frozen=True)
class _Warmup:
    peak_lr: float
    """Learning rate once the warm-up has ended."""
    warmup_images: int
    """Position at which the peak is reached; 0: no warm-up."""
    warmup_start_factor: float
    """Share of the peak at position 0."""

    def warm_lr(self, position: int) -> float:
        """The lr before any drop: linear up to the peak (Goyal et al. 2017, section 2.2)."""
        if position >= self.warmup_images:
            return self.peak_lr
        start = self.warmup_start_factor
        return self.peak_lr * (start + (1 - start) * position / self.warmup_images)

    def _describe_warmup(self) -> str:
        if self.warmup_images == 0:
            return f"lr {self.peak_lr:g}, no warm-up"
        start = self.peak_lr * self.warmup_start_factor
        return f"lr {self.peak_lr:g}, warm-up from {start:g} over {self.warmup_images:,} images"


@dataclass(frozen=True)
class StepSchedule(_Warmup):
    """Warm-up, then times `factor` at each of the given positions."""

    drop_positions: tuple[int, ...]
    """Positions from which on the lr is lower."""
    factor: float = 0.1
    """What a drop multiplies the lr by."""

    def lr(self, position: int, history: Sequence[float] = ()) -> float:
        """The lr of the step that starts at `position`; the history has no part in it."""
        drops = sum(position >= drop for drop in self.drop_positions)
        return self.warm_lr(position) * self.factor**drops

    def describe(self) -> str:
        """One line for the log: the peak in force, the warm-up and the drops."""
        drops = f"times {self.factor:g} at {_listed(self.drop_positions)} images"
        return f"{self._describe_warmup()}, {drops if self.drop_positions else 'no drops'}"


@dataclass(frozen=True)
class PlateauSchedule(_Warmup):
    """Warm-up, then times `factor` whenever the validation error has stopped falling.

    The paper's rule (section 3.4: "divided by 10 when the error plateaus"), made exact by
    `plateau_drops`.
    """

    patience: int
    """Validations in a row without improvement that make a plateau."""
    min_improvement: float
    """Least fall of the top-1 error (a fraction) that counts as improvement."""
    max_drops: int = 3
    """The most drops."""
    factor: float = 0.1
    """What a drop multiplies the lr by."""

    def lr(self, position: int, history: Sequence[float]) -> float:
        """The lr of the step that starts at `position`, after the validations in `history`.

        A drop is in force from the first step after the validation that caused it.
        """
        drops = plateau_drops(history, self.patience, self.min_improvement, self.max_drops)
        return self.warm_lr(position) * self.factor ** len(drops)

    def describe(self) -> str:
        """One line for the log: the peak in force, the warm-up and the rule of the drops."""
        return (
            f"{self._describe_warmup()}, times {self.factor:g} after {self.patience} validations "
            f"without an error lower by {self.min_improvement:g}, at most {self.max_drops} times"
        )


Schedule = StepSchedule | PlateauSchedule


def plateau_drops(
    errors: Sequence[float], patience: int, min_improvement: float, max_drops: int
) -> list[int]:
    """Returns the indices of the validations after which the learning rate dropped.

    A validation improves if its error lies below the best so far by at least `min_improvement`;
    only then does it become the best, so that many small steps down add up to an improvement. A
    NaN never improves. After `patience` validations in a row without improvement comes a drop,
    and the count starts anew; the best stays.
    """
    drops: list[int] = []
    best = float("inf")
    waited = 0
    for index, error in enumerate(errors):
        if len(drops) == max_drops:
            break
        if error < best and best - error >= min_improvement:
            best, waited = error, 0
            continue
        waited += 1
        if waited == patience:
            drops.append(index)
            waited = 0
    return drops


def _listed(positions: Sequence[int]) -> str:
    return "; ".join(f"{position:,}" for position in positions)
