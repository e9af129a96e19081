"""Which run a person means by a name, and what to answer if there is none of it."""

from __future__ import annotations

import difflib
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.runs.listing import run_folders
from pipeline.runs.state import is_run
from pipeline.train.folder import why_no_run

_MOST = 8

TRAIN = "make train trains the demo, python -m pipeline.train any other"
"""What to do where there is no run yet."""


def find_run(name: str, below: Path) -> Path:
    """The run of this name below `below`, or the one in the folder of this path.

    Raises ConfigError that says where was looked, which runs there are, and the nearest name.
    """
    folders = (below / name, Path(name))
    for folder in folders:
        try:
            if is_run(folder):
                return folder
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be read: {error.strerror}; give a run of yours"
            ) from error
    there = next((folder for folder in folders if folder.exists()), None)
    if there is not None and not run_folders(there):
        raise ConfigError(why_no_run(there))
    if "/" in name and there is None and Path(name).parent.is_dir():
        raise ConfigError(no_such_run(Path(name).name, Path(name).parent))
    raise ConfigError(no_such_run(name, there or below))


def no_such_run(name: str, below: Path) -> str:
    """That there is no run `name` below `below`, and which runs are there."""
    if not below.is_dir():
        return f"there is no run {name}: {no_folder(below)}"
    known = [str(folder.relative_to(below)) for folder in run_folders(below)]
    if not known:
        return f"there is no run {name} below {below}/, nor any other; train one: {TRAIN}"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? There" if near else "there"
    more = f" and {len(known) - _MOST} more" if len(known) > _MOST else ""
    return f"there is no run {name} below {below}/; {hint} are: {', '.join(known[:_MOST])}{more}"


def no_folder(below: Path) -> str:
    """What to do where the folder of runs is not there."""
    if below.exists():
        return f"{below} is a file; give the folder that holds the runs"
    return f"{below}/ does not exist; give the folder that holds the runs, or train one: {TRAIN}"
