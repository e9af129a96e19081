"""Settings of the schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.config.errors import require


@dataclass(frozen=True)
class ScheduleConfig:
    """How long to train, and when the learning rate falls."""

    epochs: float = 90.0
    """Length of the run in passes over the training images."""
    steps: int | None = None
    """Length of the run in optimizer steps, in place of epochs (the paper: 600,000; CIFAR 64,000);
    null: epochs count."""
    warmup_epochs: float = 5.0
    """Length of the linear rise to the peak learning rate; 0: none."""
    warmup_start_factor: float = 0.1
    """Share of the peak learning rate at the first step of the warm-up."""
    warmup_until_error: float | None = None
    """A constant warm-up at warmup_start_factor of the peak that ends when the training error of a
    window of 100 steps falls below this fraction (0.8 for the paper's 110 layers on CIFAR-10);
    null: the warm-up is warmup_epochs."""
    rule: Literal["steps", "plateau"] = "steps"
    """Drop by 10 at given epochs, or when the validation error stops falling (the paper)."""
    drop_epochs: tuple[float, ...] = (30.0, 60.0, 80.0)
    """steps: where the learning rate is divided by 10."""
    drop_steps: tuple[int, ...] | None = None
    """steps: the same in optimizer steps, in place of drop_epochs (CIFAR: 32,000 and 48,000); null:
    drop_epochs count."""
    patience: int = 5
    """plateau: validations without improvement before a drop."""
    min_improvement: float = 0.001
    """plateau: least fall of the top-1 error (a fraction) that counts as improvement."""
    max_drops: int = 3
    """plateau: the most drops."""

    def __post_init__(self) -> None:
        require(
            self.epochs > 0 and math.isfinite(self.epochs),
            f"schedule.epochs={self.epochs} must be greater than 0",
        )
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"schedule.warmup_epochs={self.warmup_epochs} must be at least 0 and less than "
            f"schedule.epochs={self.epochs}",
        )
        require(
            0 < self.warmup_start_factor <= 1,
            f"schedule.warmup_start_factor={self.warmup_start_factor} must lie in (0, 1]",
        )
        ordered = all(a < b for a, b in zip(self.drop_epochs, self.drop_epochs[1:], strict=False))
        require(
            ordered and all(epoch > 0 for epoch in self.drop_epochs),
            f"schedule.drop_epochs={list(self.drop_epochs)} must be positive and rising",
        )
        require(self.patience >= 1, f"schedule.patience={self.patience} must be at least 1")
        require(
            self.min_improvement >= 0,
            f"schedule.min_improvement={self.min_improvement} must be at least 0",
        )
        require(self.max_drops >= 0, f"schedule.max_drops={self.max_drops} must be at least 0")
