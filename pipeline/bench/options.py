"""The options of each benchmark. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config import require


@dataclass(frozen=True)
class LoaderOptions:
    """This project's loader against a PyTorch DataLoader with Pillow transforms."""

    data: str | None = None
    """Folder with train/<class>/<image> to read; null: JPEGs of ImageNet's usual size are made in a
    temporary folder."""
    files: int = 512
    """JPEGs to make when `data` is null."""
    rounds: int = 9
    """Rounds of each side, in turn."""
    images: int = 1024
    """Images timed in a round, rounded up to whole batches for every worker."""
    batch: int = 64
    """Images per batch."""
    size: int = 224
    """Side of the crop in pixels."""
    threads: int = 2
    """DALI's threads, and the workers of the DataLoader."""

    def __post_init__(self) -> None:
        _at_least_one(self, "files", "rounds", "images", "batch", "size", "threads")


@dataclass(frozen=True)
class StepOptions:
    """train_epoch against a bare loop over the same images in memory."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the model runs on; auto: a GPU where there is one."""
    rounds: int = 13
    """Rounds of each side, in turn."""
    steps: int = 20
    """Steps in a round: as many as lie between two lines of metrics in configs/demo.yaml."""
    images: int = 32
    """Images per step."""
    size: int = 64
    """Side of the images in pixels."""
    depth: int = 18
    """Layers of the ResNet."""
    threads: int = 2
    """PyTorch's CPU threads."""

    def __post_init__(self) -> None:
        _at_least_one(self, "rounds", "steps", "images", "size", "threads")


@dataclass(frozen=True)
class ScaleOptions:
    """Two Horovod ranks against two processes at the same time that do not communicate."""

    rounds: int = 13
    """Rounds of each side, in turn."""
    steps: int = 6
    """Steps in a round."""
    images: int = 64
    """Images per rank and step."""
    size: int = 64
    """Side of the images in pixels."""
    depth: int = 18
    """Layers of the ResNet."""

    def __post_init__(self) -> None:
        _at_least_one(self, "rounds", "steps", "images", "size")


@dataclass(frozen=True)
class ManifestOptions:
    """A manifest of ImageNet's size: opening it, its memory, and planning a batch."""

    images: int = 1_281_167
    """Rows of the manifest; as many as ImageNet's training set."""
    batch: int = 256
    """Images of the batch that is planned."""
    rounds: int = 9
    """Times the manifest is opened, each in a process of its own."""

    def __post_init__(self) -> None:
        _at_least_one(self, "images", "batch", "rounds")


@dataclass(frozen=True)
class DemoOptions:
    """configs/demo.yaml from start to end under horovodrun, once for each seed."""

    seeds: str = "0,1,2,3,4"
    """Seeds of the runs (run.seed), with commas between; the data set stays the same."""
    data: str = "data/demo"
    """Folder of the demo data set; drawn when it is not there."""
    ranks: int = 2
    """Horovod ranks."""

    def __post_init__(self) -> None:
        _at_least_one(self, "ranks")
        parts = self.seeds.split(",")
        require(
            all(part.strip().isdecimal() for part in parts),
            f"--seeds={self.seeds} must be whole numbers with commas between, such as 0,1,2",
        )

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds, in order."""
        return [int(part) for part in self.seeds.split(",")]


OPTIONS = {
    "loader": LoaderOptions,
    "step": StepOptions,
    "scale": ScaleOptions,
    "manifest": ManifestOptions,
    "demo": DemoOptions,
}


def _at_least_one(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        require(value >= 1, f"--{name}={value} must be at least 1")
