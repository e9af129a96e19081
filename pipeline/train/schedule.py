"""The learning rate as a pure function of position (images consumed so far) and history.

No schedule holds state: a checkpoint needs the position and the history, of which
`pipeline.train.warmup` finds when a warm-up ends that waits for the training error to fall.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipeline.config import Config, ScheduleConfig, require
from pipeline.data.batches import total_steps
from pipeline.system.console import counted

WARMUP_WINDOW_STEPS = 100
"""Steps over which `ErrorWarmup` measures the training error.

The paper (section 4.2) warms its 110 layers up "until the training error is below 80% (about 400
iterations)" and does not say over how many images that error is taken; the window is ours, a
quarter of that length. Windows are the steps [100k, 100k + 100), counted from step 0.
"""

DROP_FACTOR = 0.1
_ROUNDING = 1e-9
"""How much rounding may take from a difference of errors; one image of ten million is a hundred
times as much."""


def scaled_lr(base_lr: float, global_batch_size: int) -> float:
    """The peak lr of a global batch, linear in its size; `base_lr` is that of 256 images.

    Source: the linear scaling rule, Goyal et al. 2017, section 2.1.
    """
    return base_lr * global_batch_size / 256


@dataclass(frozen=True)
class History:
    """The history of training on which the learning rate depends."""

    errors: tuple[float, ...] = ()
    """Top-1 error of every validation so far, in order, as fractions."""
    warmup_end: int | None = None
    """Position from which on an `ErrorWarmup` is over; None: it is not, or there is none."""


NOTHING_YET = History()


@dataclass(frozen=True)
class LinearWarmup:
    """A linear rise to the peak (Goyal et al. 2017, section 2.2)."""

    images: int
    """Position at which the peak is reached; 0: no warm-up."""
    start_factor: float
    """Share of the peak at position 0."""

    def share(self, position: int, history: History) -> float:
        """The lr at `position` as a share of the peak; the history has no influence."""
        del history
        if position >= self.images:
            return 1.0
        return self.start_factor + (1 - self.start_factor) * position / self.images

    def end(self, history: History) -> int:
        """The position from which the peak is in force."""
        del history
        return self.images

    def describe(self, peak_lr: float, global_batch_size: int) -> str:
        """A few words for the log."""
        if self.images == 0:
            return "no warm-up"
        steps = counted(_first_step(self.images, global_batch_size), "step")
        start = peak_lr * self.start_factor
        return f"warm-up from {start:g} over {steps} ({counted(self.images, 'image')})"


@dataclass(frozen=True)
class ErrorWarmup:
    """A constant fraction of the peak until the training error has fallen (paper, section 4.2)."""

    factor: float
    """Share of the peak during the warm-up."""
    until_error: float
    """The warm-up ends after the first window whose training error lies below this fraction."""

    def share(self, position: int, history: History) -> float:
        """The lr at `position` as a share of the peak."""
        over = history.warmup_end is not None and position >= history.warmup_end
        return 1.0 if over else self.factor

    def end(self, history: History) -> int | None:
        """The position from which the peak is in force; None: not known yet."""
        return history.warmup_end

    def ends(self, hits: int, images: int) -> bool:
        """Whether a window of `images`, of which `hits` were right, ends the warm-up; exact."""
        return images - hits < Fraction(str(self.until_error)) * images

    def describe(self, peak_lr: float, global_batch_size: int) -> str:
        """A few words for the log."""
        del global_batch_size
        return (
            f"warm-up at {peak_lr * self.factor:g} until the training error of "
            f"{WARMUP_WINDOW_STEPS} steps is below {self.until_error:g}"
        )


Warmup = LinearWarmup | ErrorWarmup


@dataclass(frozen=True)
class StepDrops:
    """Drops at the given positions, counted from position 0."""

    positions: tuple[int, ...]

    def share(self, position: int, history: History, start: int | None) -> float:
        """The lr at `position` as a share of the one without drops; only the position counts."""
        del history, start
        return float(DROP_FACTOR ** sum(position >= drop for drop in self.positions))

    def describe(self, global_batch_size: int, total_steps: int) -> str:
        """A few words for the log: places in training both in images and in steps, and how many
        lie behind its end."""
        within = [p for p in self.positions if _first_step(p, global_batch_size) < total_steps]
        beyond = len(self.positions) - len(within)
        never = f"{counted(beyond, 'drop')} behind its end" if beyond else ""
        if not within:
            return "no drops" + (f" in this run ({never})" if beyond else "")
        steps = "; ".join(f"{_first_step(p, global_batch_size):,}" for p in within)
        images = "; ".join(f"{position:,}" for position in within)
        word = "step" if len(within) == 1 else "steps"
        said = f"times {DROP_FACTOR:g} from {word} {steps} on ({images} images)"
        return said + (f", and {never}" if beyond else "")


@dataclass(frozen=True)
class PlateauDrops:
    """Drops whenever the validation error has stopped falling.

    The paper's rule (section 3.4: "divided by 10 when the error plateaus"), made exact by `after`.
    A drop is in force from the first step after the validation that caused it.
    """

    patience: int
    """Validations in a row without improvement that make a plateau."""
    min_improvement: float
    """Least fall of the top-1 error (a fraction) that counts as improvement."""
    most: int = 3
    """The most drops."""

    def share(self, position: int, history: History, start: int | None) -> float:
        """The lr after the validations in `history` as a share of the one without drops."""
        del position, start
        return float(DROP_FACTOR ** len(self.after(history.errors)))

    def after(self, errors: Sequence[float]) -> list[int]:
        """Returns the indices of the validations after which the learning rate dropped.

        A validation improves if its error lies below the best so far by at least `min_improvement`;
        only then does it become the best, so that many small steps down add up to an improvement. A
        NaN never improves. After `patience` validations in a row without improvement comes a drop,
        and the count starts over; the best stays.
        """
        drops: list[int] = []
        best, waited = float("inf"), 0
        for index, error in enumerate(errors):
            if len(drops) == self.most:
                break
            if error < best and best - error >= self.min_improvement - _ROUNDING:
                best, waited = error, 0
                continue
            waited += 1
            if waited == self.patience:
                drops.append(index)
                waited = 0
        return drops

    def describe(self, global_batch_size: int, total_steps: int) -> str:
        """A few words for the log: the rule."""
        del global_batch_size, total_steps
        return (
            f"times {DROP_FACTOR:g} after {counted(self.patience, 'validation')} without an error "
            f"lower by {self.min_improvement:g}, at most {counted(self.most, 'time')}"
        )


@dataclass(frozen=True)
class Curve(ABC):
    """A fall by position, from the peak at the end of the warm-up to a floor at the run's end."""

    end: int
    """The first position behind the run."""
    floor: float
    """Share of the peak at `end`."""

    def share(self, position: int, history: History, start: int | None) -> float:
        """The lr at `position` as a share of the peak; 1 until `start`, which may not be known
        yet."""
        del history
        if start is None or position < start:
            return 1.0
        if position >= self.end:
            return self.floor
        gone = (position - start) / (self.end - start)
        return self.floor + (1 - self.floor) * self.height(gone)

    @abstractmethod
    def height(self, gone: float) -> float:
        """The curve itself, from 1 to 0, where a share `gone` of its length lies behind."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in the log."""

    def describe(self, global_batch_size: int, total_steps: int) -> str:
        """A few words for the log: the curve, its floor, and its end in steps and images."""
        del global_batch_size
        to = f"{self.floor:g} of that" if self.floor else "0"
        return f"then {self.name} down to {to} at step {total_steps:,} ({self.end:,} images)"


@dataclass(frozen=True)
class CosineCurve(Curve):
    """Half a period of a cosine (Loshchilov and Hutter 2017, equation 5, without restarts)."""

    def height(self, gone: float) -> float:
        """The curve itself, from 1 to 0."""
        return (1 + math.cos(math.pi * gone)) / 2

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return "a cosine"


@dataclass(frozen=True)
class PolynomialCurve(Curve):
    """A power of what is left of the run; 1: a straight line."""

    power: float

    def height(self, gone: float) -> float:
        """The curve itself, from 1 to 0."""
        return float((1 - gone) ** self.power)

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return f"a polynomial of power {self.power:g}"


Fall = StepDrops | PlateauDrops | Curve


@dataclass(frozen=True)
class Schedule:
    """Warm-up to a peak, and from there a fall: drops by `DROP_FACTOR`, or a curve."""

    peak_lr: float
    """Learning rate once the warm-up has ended."""
    warmup: Warmup
    fall: Fall

    def lr(self, position: int, history: History = NOTHING_YET) -> float:
        """The lr of the step that starts at `position`, given the history of training."""
        fallen = self.fall.share(position, history, self.warmup.end(history))
        return self.peak_lr * self.warmup.share(position, history) * fallen

    def describe(self, global_batch_size: int, total_steps: int) -> str:
        """One line for the log of a run of `total_steps`: the peak in force, the warm-up and the
        fall."""
        warmup = self.warmup.describe(self.peak_lr, global_batch_size)
        fall = self.fall.describe(global_batch_size, total_steps)
        return f"lr {self.peak_lr:g}, {warmup}, {fall}"


def _first_step(position: int, global_batch_size: int) -> int:
    """The first step whose images all lie at `position` or later; a step takes the lr of its first
    image."""
    return -(-position // global_batch_size)


def run_length(schedule: ScheduleConfig, train_images: int, global_batch_size: int) -> int:
    """The optimizer steps of a run."""
    if schedule.steps is not None:
        return schedule.steps
    assert schedule.epochs is not None, "ScheduleConfig has one of the two"
    return total_steps(schedule.epochs, train_images, global_batch_size)


def make_schedule(config: Config, train_images: int) -> Schedule:
    """The learning rate over positions, from a configuration in epochs or steps.

    Raises `ConfigError` for a warm-up as long as a run whose length is in steps.
    """
    peak = scaled_lr(config.optim.base_lr, config.data.global_batch_size)
    return Schedule(peak, _make_warmup(config, train_images), _make_fall(config, train_images))


def _make_fall(config: Config, train_images: int) -> Fall:
    schedule, batch = config.schedule, config.data.global_batch_size
    if schedule.rule == "plateau":
        return PlateauDrops(schedule.patience, schedule.min_improvement, schedule.max_drops)
    if schedule.rule != "steps":
        # Not the steps times the batch where epochs say it: the last step may go beyond.
        end = (schedule.steps or 0) * batch or _images(schedule.epochs or 0, train_images)
        if schedule.rule == "cosine":
            return CosineCurve(end, schedule.end_factor)
        return PolynomialCurve(end, schedule.end_factor, schedule.power)
    if schedule.drop_steps is not None:
        return StepDrops(tuple(step * batch for step in schedule.drop_steps))
    return StepDrops(tuple(_images(epochs, train_images) for epochs in schedule.drop_epochs or ()))


def _make_warmup(config: Config, train_images: int) -> Warmup:
    schedule = config.schedule
    if schedule.warmup_until_error is not None:
        return ErrorWarmup(schedule.warmup_start_factor, schedule.warmup_until_error)
    images = _images(schedule.warmup_epochs, train_images)
    if schedule.steps is not None:
        length = schedule.steps * config.data.global_batch_size
        require(
            images < length,
            f"schedule.warmup_epochs={schedule.warmup_epochs} is {images:,} images and the run has "
            f"{length:,} in schedule.steps={schedule.steps}; shorten the warm-up or lengthen the "
            "run",
        )
    return LinearWarmup(images, schedule.warmup_start_factor)


def _images(epochs: float, train_images: int) -> int:
    """The first position not before `epochs` epochs, exact as `total_steps` is."""
    return math.ceil(Fraction(str(epochs)) * train_images)
