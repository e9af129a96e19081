"""The benchmarks that measure a training's configuration, and their options. Imports nothing heavy.

`--config` and the settings of a training are read as pipeline.train reads them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from pipeline.benchmark.checks import chosen, within
from pipeline.config import Config, names_for
from pipeline.config.reading import CONFIGS, add_overrides, overrides, read_yaml
from pipeline.config.setting import at_least_one, require

if TYPE_CHECKING:
    from pipeline.train.folder import RunFolder

LINK_RANKS = 2
"""Ranks on this machine between which the link is measured."""
PARTS = ("loader", "model", "step", "allreduce", "norm")


@dataclass(frozen=True)
class ModelOptions:
    """The model alone, its images in memory: img/s of a rank, and what its step is made of."""

    rounds: int = 9
    """Rounds of each side, in turn."""
    round_sec: float = 1.0
    """A round takes about this long, in whole steps and at least one."""
    config: Config = field(default_factory=Config)
    """What is measured, for one rank."""

    def __post_init__(self) -> None:
        at_least_one(self, "--", "rounds")
        require(self.round_sec > 0, f"--round_sec={self.round_sec:g} must be above 0")

    @property
    def images(self) -> int:
        """Images that one rank takes at once."""
        return min(self.config.data.local_batch_size, self.config.data.global_batch_size)

    def settings(self) -> dict[str, Any]:
        """All of it as plain values, for a result."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class AllOptions(ModelOptions):
    """Loader, model, step, all-reduce and norm layers of a configuration, and what limits it."""

    parts: str = ",".join(PARTS)
    """What is measured, with commas between."""
    files: int = 512
    """JPEGs to make where --data.root is not given, nor --config of a run whose data are there: as
    large for data.image_size as ImageNet's are for 224."""
    made: bool = True
    """Whether the images are made."""
    ranks: int = LINK_RANKS
    """For how many ranks the verdict is: those of the stored run, else as many as the batch is
    for, at most two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "--", "files")
        within(self, "parts", PARTS)

    @property
    def part_names(self) -> list[str]:
        """The parts, in order."""
        return chosen(self.parts, PARTS)


Configured = type[ModelOptions]
CONFIGURED: dict[str, Configured] = {"model": ModelOptions, "all": AllOptions}
NOT_OPTIONS = {"config", "made", "ranks"}
"""Fields that come from --config and the settings."""


def add_settings(parser: ArgumentParser, kind: Configured) -> None:
    """Gives `parser` --config and the settings that `kind` depends on."""
    default = CONFIGS / "demo.yaml"
    parser.add_argument("--config", metavar="FILE", default=str(default), help="YAML of a training")
    add_overrides(parser, _settings(kind))


def read_settings(parsed: Any, kind: Configured) -> dict[str, Any]:
    """The fields `NOT_OPTIONS` of `kind`, from what `parser` found. Raises `ConfigError`."""
    base: dict[str, Any] = {"data": {}, "model": {}, "optim": {}, "run": {}}
    base |= read_yaml(Path(parsed.config))
    size = parsed["data.image_size"]
    if size is not None:  # nothing is validated here, and the two settings must fit
        base["data"] = base["data"] | {"val_resize": size}
    config = overrides(parsed, _settings(kind), base)
    found: dict[str, Any] = {"config": config}
    if kind is AllOptions:
        stored = _stored_run(Path(parsed.config))
        of_run = stored is not None and Path(config.data.root).is_dir()
        found["made"] = parsed["data.root"] is None and not of_run
        found["ranks"] = _ranks(config, stored)
    return found


def _stored_run(path: Path) -> RunFolder | None:
    """The run whose resolved settings `path` holds; None: it holds no run's."""
    from pipeline.train.folder import run_of

    run = run_of(path)
    return run if run is not None and run.config == path.absolute() and run.has_trained else None


def _ranks(config: Config, stored: RunFolder | None) -> int:
    found: int | None = None if stored is None else stored.last("start").get("ranks")
    if found is not None:
        return found
    return 1 if config.data.global_batch_size <= config.data.local_batch_size else LINK_RANKS


def _settings(kind: Configured) -> list[str]:
    of_all = names_for("benchmark all") if kind is AllOptions else []
    return names_for("benchmark") + of_all
