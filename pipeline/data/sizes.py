"""The side of the training crops, which may grow from epoch to epoch, as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import DataConfig, require
from pipeline.config.setting import shown
from pipeline.system.console import counted


@dataclass(frozen=True)
class Sizes:
    """The side in pixels of the training crops of each step, `batch` images a step.

    `starts` are (position, side), both rising, the first at position 0. A step has the size in
    force at its first image, as it has the learning rate: a size begins with the first step whose
    images all lie in its epoch or later. All micro-batches of a step have one size.
    """

    starts: tuple[tuple[int, int], ...]
    batch: int

    def at(self, position: int) -> int:
        """The side of the crop at `position`: that of its step."""
        first = position - position % self.batch
        return next(side for start, side in reversed(self.starts) if start <= first)

    def of_step(self, step: int) -> int:
        """The side of the crops of `step`."""
        return self.at(step * self.batch)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """(step, side) where each size begins."""
        return [(-(-start // self.batch), side) for start, side in self.starts]

    @property
    def largest(self) -> int:
        """The side of the last crops."""
        return self.starts[-1][1]

    def describe(self) -> str:
        """A few words for the log."""
        return ", ".join(f"{side} px from step {step:,} on" for step, side in self.steps)


def growing_sizes(config: DataConfig, images: int, steps: int) -> Sizes | None:
    """The sizes of a run of `steps` over epochs of `images`; None where there is one size.

    Raises `ConfigError` for a size that begins after the last step.
    """
    if config.image_sizes is None or len(config.image_sizes) == 1:
        return None
    by_epoch = sorted(config.image_sizes.items())
    starts = tuple((epoch * images, side) for epoch, side in by_epoch)
    sizes = Sizes(starts, config.global_batch_size)
    (step, side), (epoch, _) = sizes.steps[-1], by_epoch[-1]
    require(
        step < steps,
        f"data.image_sizes={shown(config.image_sizes)} begins {side} px with epoch {epoch}, step "
        f"{step:,}, and the run has {counted(steps, 'step')}; take that epoch out, or lengthen the "
        "run",
    )
    return sizes
