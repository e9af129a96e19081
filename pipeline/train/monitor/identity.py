"""Whose event files a run's folder holds: a run has an id, and each of its event files bears it.

A folder that is copied whole keeps its id, whatever its new path or the data's.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from pipeline.system.files import replacing
from pipeline.train.monitor.board import event_files, run_of

log = logging.getLogger("trainyard")

_NAME = "run_id.txt"


def own_id(run_dir: Path, board: Path, metrics_path: Path, position: int) -> str:
    """The id of the run in `run_dir`, which goes on at `position`; its first start makes one.

    Raises `ValueError` if `board` has event files of another run, or such as may be. Files without
    an id are older than ids and pass beside the run's metrics or its id. Warns if the run's metrics
    are gone.
    """
    found, files, missing = _read(run_dir), event_files(board), not metrics_path.exists()
    if missing and files and found is None:
        raise ValueError(
            f"{metrics_path.name} is missing in {run_dir}, and nothing else says whose event files "
            f"{board} holds; bring it back, or move {board.name}/ away: then metrics and curves "
            f"begin at {position} images seen"
        )
    for path in files:
        of = run_of(path)
        if of is not None and of != found:
            whose = f"of another run ({of}, this one is {found})"
            if found is None:
                whose = f"of the run {of}, and {run_dir} has no {_NAME} to say that it is that run"
            raise ValueError(
                f"the event file {path} is {whose}; move it away, or choose another run.name: "
                f"where no event file is left, {board.name}/ is drawn anew from {metrics_path.name}"
            )
    if missing and found is not None and (files or position > 0):
        log.warning(
            "warning: %s is missing in %s and begins anew at %d images seen: reports lack what "
            "came before, and TensorBoard keeps its curves",
            metrics_path.name, run_dir, position,
        )  # fmt: skip
    return found or _make(run_dir)


def _read(run_dir: Path) -> str | None:
    try:
        return (run_dir / _NAME).read_text(encoding="utf-8", errors="replace").strip() or None
    except FileNotFoundError:
        return None


def _make(run_dir: Path) -> str:
    made = secrets.token_hex(8)
    with replacing(run_dir / _NAME) as new:
        new.write_text(f"{made}\n", encoding="utf-8")
    return made
