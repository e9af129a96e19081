"""A run's folder that cannot be used: what is in the way, in one sentence with what to do."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.system.failure import USERS, TrainingError, cure
from pipeline.train.folder import RunFolder

_REPAIR = "repair or remove it"
_PERMIT = "give this user write access, or mount it read-write"  # nothing there is to be removed
_NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)
_ELSE = "or choose another run.name or run.dir"


@contextmanager
def explained(run: RunFolder) -> Iterator[None]:
    """Turns an `OSError` of the body into a sentence: `ValueError` if the user can repair it,
    `TrainingError` if the disk is full or fails."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or run.path, error.strerror or str(error)
        if error.errno in USERS:
            way = _PERMIT if error.errno in _NOT_PERMITTED else _REPAIR
            raise ValueError(
                f"the run in {run.path} cannot use {place}: {reason}; {way}, {_ELSE}"
            ) from error
        raise TrainingError(
            f"the run in {run.path} cannot use {place}: {reason}; {cure(error)}"
        ) from error


def make_usable(run: RunFolder) -> None:
    """Makes the run's folder if need be, and changes nothing in one that is there.

    Raises `ValueError` for what is of the wrong kind, a link to nowhere or not to be written.
    """
    for place in (*reversed(run.path.parents), run.path):
        _require(place, folder=True, access=os.X_OK)
    with explained(run):
        run.path.mkdir(parents=True, exist_ok=True)
    _require(run.path, folder=True, access=os.R_OK | os.W_OK | os.X_OK)
    for place in (
        run.checkpoints,
        run.tensorboard,
        run.stacks,
        run.profile,
        run.nccl,
        run.csv,
        run.wandb,
    ):
        _require(place, folder=True, access=os.R_OK | os.W_OK | os.X_OK)
    for place in (run.lock, run.metrics, run.log):
        _require(place, folder=False, access=os.R_OK | os.W_OK)
    for place in (run.config, run.failure, run.stop, run.origin, run.wandb_id, run.mlflow_id):
        _require(place, folder=False, access=os.R_OK)


def _require(place: Path, folder: bool, access: int) -> None:
    wrong = _what_is_wrong(place, folder, access)
    if wrong is not None:
        what, way = wrong
        raise ValueError(f"{place} {what}; {way}, {_ELSE}")


def _what_is_wrong(place: Path, folder: bool, access: int) -> tuple[str, str] | None:
    """Why `place` is no folder or file of that access, and what to do; None if it is one, or is not
    there."""
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        if not place.is_symlink():
            return None
        target = place.parent / os.readlink(place)
        if not folder and target.parent.is_dir():
            return None  # the first write makes it
        return f"is a link to {target}, which does not exist", _REPAIR
    except NotADirectoryError:
        return None  # the file above it has been named
    except OSError as error:
        way = _PERMIT if error.errno in _NOT_PERMITTED else _REPAIR
        return f"cannot be used: {error.strerror}", way
    if stat.S_ISDIR(mode) != folder:
        kind = "is a folder where a file belongs" if stat.S_ISDIR(mode) else "is no folder"
        return kind, _REPAIR
    if not folder and not stat.S_ISREG(mode):
        return "is a special file (a pipe, a device) where a plain one belongs", _REPAIR
    if not os.access(place, access, effective_ids=True):
        return "may not be read and written by this user, or its disk is read-only", _PERMIT
    return None
