"""The path of a checkpoint as a user gives it: of its file, or of the folder of its run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pipeline.config import ConfigError, require
from pipeline.train.folder import Checkpoints, RunFolder

_AnyPath = str | os.PathLike[str]


def checkpoint_at(setting: str, place: _AnyPath | None) -> Path:
    """The checkpoint `place`, or best.pt of the run whose folder it is.

    Raises `ConfigError`, naming `setting`, if there is none.
    """
    with contextlib.suppress(OSError):  # which is told below
        if place is not None and Path(place).is_dir():
            return _best_of(setting, RunFolder(Path(place)))
    return checkpoint_exists(setting, place, "a .pt file, or of a run's folder")


def best_if_run(setting: str, place: Path) -> Path:
    """`place` itself, or best.pt of the run whose folder it is. Raises `ConfigError`, naming
    `setting`, for a run without."""
    run = RunFolder(place)
    return _best_of(setting, run) if place.is_dir() and run.is_run else place


def _best_of(setting: str, run: RunFolder) -> Path:
    """best.pt of the folder `run`. Raises `ConfigError`, naming `setting`, if there is none."""
    require(
        run.is_run,
        f"{setting} {run.path} is a folder, and no run's, which would hold config.yaml; give the "
        "path of a .pt file, or of a run's folder",
    )
    saved = Checkpoints(run.checkpoints)
    if not saved.best.is_file():
        newest = "".join(f", as {saved.path(step)}" for step in saved.steps()[-1:])
        raise ConfigError(
            f"{setting} {run.path} is a run without checkpoints/best.pt, which a validation "
            f"writes; give the path of another checkpoint{newest}"
        )
    return saved.best


def checkpoint_exists(setting: str, path: _AnyPath | None, what: str = "a .pt file") -> Path:
    """The file `path`. Raises `ConfigError`, naming `setting` and `what` may be given, if it is
    none."""
    if path is None:
        raise ConfigError(f"{setting} is missing; give the path of {what}")
    path = Path(path)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise ConfigError(
            f"{setting} {path} cannot be read: {error.strerror}; give the path of {what}"
        ) from error
    require(
        not is_folder,
        f"{setting} {path} is a folder; give the path of a .pt file in it, as a run has in "
        "checkpoints/best.pt",
    )
    require(is_file, f"{setting} {path} does not exist; give the path of {what}")
    return path
