"""Settings of a run's place and pace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config.errors import require


@dataclass(frozen=True)
class RunConfig:
    """Where a run lies, what it writes when, and what it runs on."""

    name: str = "resnet50"
    """Name of the run; it lies in <dir>/<name>/."""
    dir: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seed of the initial weights, the data order and every augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the model runs on; auto: a GPU per rank where there is one."""
    threads: int | None = None
    """PyTorch's CPU threads per rank; null: this rank's share of the cores."""
    log_every_steps: int = 50
    """Steps between two lines of training metrics."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints inside an epoch; null: none by steps."""
    checkpoint_every_sec: float | None = 900.0
    """Seconds between checkpoints inside an epoch; null: none by time."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay, besides the best."""
    step_timeout_sec: float | None = 600.0
    """Seconds without progress on a rank after which the job ends and names who holds it up; null:
    it waits for ever."""

    expect_top1: float | None = None
    """Top-1 in [0, 1] that earlier runs of this configuration have reached, which the end of a run
    is held against; null: none is known."""

    def __post_init__(self) -> None:
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"run.name={self.name!r} must be a plain folder name",
        )
        require(0 <= self.seed < 2**63, f"run.seed={self.seed} must lie in [0, 2**63)")
        for name in ("threads", "checkpoint_every_steps", "checkpoint_every_sec"):
            value = getattr(self, name)
            require(
                value is None or value > 0, f"run.{name}={value} must be greater than 0, or null"
            )
        for name in ("log_every_steps", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 1, f"run.{name}={value} must be at least 1")
        expected = self.expect_top1
        require(
            expected is None or 0 <= expected <= 1,
            f"run.expect_top1={expected} must be a share in [0, 1], or null",
        )
        limit = self.step_timeout_sec
        require(
            limit is None or 1 <= limit <= 1e6,
            f"run.step_timeout_sec={limit} must lie in [1, 1000000], or be null for no limit",
        )

    @property
    def path(self) -> Path:
        """The run's own folder."""
        return Path(self.dir) / self.name
