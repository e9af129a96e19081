"""The loggers of `run.loggers`: which there are, and what they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pipeline.config import Config, require
from pipeline.config.run import Logger
from pipeline.system.files import Room
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.guarded import Guarded, warn_of
from pipeline.train.monitor.observer import Observer

_PACKAGES: Mapping[Logger, str] = {
    "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny",
}  # fmt: skip
"""What has the library that a logger needs, a module of the logger's name."""


def require_installed(names: Sequence[Logger]) -> None:
    """Raises `ConfigError` for a logger whose library is not installed; imports none."""
    for name in names:
        require(
            name not in _PACKAGES or _is_installed(name),
            f"run.loggers names {name}, whose library is not installed; run pip install "
            f"{_PACKAGES.get(name)}, or leave {name} out of run.loggers",
        )


def _is_installed(module: str) -> bool:
    found = find_spec(module)
    # Without an origin it is a folder of the name, as W&B leaves one wherever it was used.
    return found is not None and found.origin is not None


@dataclass(frozen=True)
class Beginning:
    """What a logger is told when a start of a run begins."""

    run: RunFolder
    config: Config
    position: int
    """Where the run resumes, in images; 0 for a new one."""
    kept: Sequence[Mapping[str, Any]]
    """The lines of training and validation up to there."""
    room: Room
    top5: bool = True
    """Whether the run counts top-5."""


def open_loggers(begin: Beginning) -> list[Observer]:
    """The loggers of a run, none of which raises anything later. Raises `OSError` if the run's own
    folder takes no file."""
    return [Guarded(name, _opened(name, begin)) for name in begin.config.run.loggers]


def _opened(name: Logger, begin: Beginning) -> Observer:
    try:
        return _OPEN[name](begin)
    except OSError:
        raise
    except Exception as error:  # a library that does not fit another one, or what lies there
        warn_of(name, error, "gets nothing from this start")
        return Observer()


def _tensorboard(begin: Beginning) -> Observer:
    from pipeline.train.monitor.board import Board
    from pipeline.train.monitor.charts import Shown

    has = Shown.by(begin.config, begin.top5)
    board = Board(begin.run.tensorboard, begin.position, begin.kept, begin.room, has)
    if board.is_new:
        board.describe(begin.config)
    return board


def _csv(begin: Beginning) -> Observer:
    from pipeline.train.monitor.tables import Tables

    return Tables(begin.run.csv, begin.kept, begin.room)


def _wandb(begin: Beginning) -> Observer:
    from pipeline.train.monitor.sender import Sender
    from pipeline.train.monitor.wandb_run import WandbRun

    return Sender("wandb", WandbRun(begin.run, begin.config, begin.position == 0), begin.kept)


def _mlflow(begin: Beginning) -> Observer:
    from pipeline.train.monitor.mlflow_run import MlflowRun
    from pipeline.train.monitor.sender import Sender

    return Sender("mlflow", MlflowRun(begin.run, begin.config, begin.position == 0), begin.kept)


_OPEN: Mapping[Logger, Callable[[Beginning], Observer]] = {
    "tensorboard": _tensorboard, "csv": _csv, "wandb": _wandb, "mlflow": _mlflow,
}  # fmt: skip
