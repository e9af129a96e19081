"""Where a run begins: with its newest checkpoint, with one that is named, with weights from
elsewhere (`pipeline.train.init`), or from scratch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from pipeline.system.files import write_text
from pipeline.train import init
from pipeline.train.access import explained
from pipeline.train.checkpoint import read_verified, require_same_run
from pipeline.train.events import read_metrics
from pipeline.train.folder import RunFolder
from pipeline.train.metrics import Validation, is_best
from pipeline.train.saving import CheckpointFolder
from pipeline.train.state import compared
from pipeline.train.trainer import Trainer

log = logging.getLogger("trainyard")


def resume(trainer: Trainer) -> None:
    """Collective. Puts every rank at the state of the run: its checkpoint, or rank 0's initial
    weights. Its fingerprint then has what it began with."""
    world = trainer.world

    def found() -> dict[str, Any] | None:
        with explained(trainer.folder):
            return _find_checkpoint(trainer)

    content = world.on_rank0(found)
    if content is None:
        init.begin(trainer)
        content = world.broadcast_object(trainer.content())
    trainer.fingerprint |= init.facts_in(content.get("fingerprint", {}))
    trainer.state.restore(content, world)


def _find_checkpoint(trainer: Trainer) -> dict[str, Any] | None:
    """The checkpoint that `--resume` points to, checked to belong to this run; None for a new
    run."""
    choice, run, checkpoints = trainer.config.resume, trainer.folder, trainer.checkpoints
    checkpoints.remove_leftovers()
    started_from, has_metrics = _origin(run), run.metrics.name in os.listdir(run.path)
    holds_run = bool(checkpoints.steps() or checkpoints.others()) or has_metrics
    if choice == "none":
        if holds_run:
            raise ValueError(
                f"{run.path} already holds a run and --resume is none; choose another run.name, or "
                "--resume auto to resume it"
            )
        return None
    if choice == "auto" or (holds_run and str(Path(choice).resolve()) == started_from):
        found = checkpoints.latest()
        if found is None:
            _require_never_saved(run, started_from)
            _warn_of_lost_init(run, trainer.config.init)
            return None
        path, content = found
    else:
        path = Path(choice)
        content = read_verified(path)
        if holds_run and path.resolve().parent != checkpoints.folder.resolve():
            raise ValueError(
                f"{run.path} already holds another run than --resume {path}; choose another "
                "run.name"
            )
    wanted = compared(trainer.fingerprint, trainer.config)
    stored = content.get("fingerprint", {})
    require_same_run(path, stored, wanted)
    init.require_same_start(path, stored, trainer.config.init)
    _take_over(trainer, path, content, holds_run)
    return content


def _take_over(trainer: Trainer, path: Path, content: dict[str, Any], holds_run: bool) -> None:
    """Makes `content` of checkpoint `path` the newest of the run, from which it resumes."""
    run, checkpoints, step = trainer.folder, trainer.checkpoints, content["step"]
    if not holds_run:
        # From here on the run is independent, and the same command resumes it.
        write_text(run.origin, str(path.resolve()))
    if step not in checkpoints.steps():  # of another run, or best.pt alone was left
        checkpoints.save(step, content)
    log.info("resuming from %s at step %d", path, step)
    checkpoints.set_aside_after(step)
    _link_best(checkpoints, content)


def _origin(run: RunFolder) -> str | None:
    """The checkpoint of another run with which this one began."""
    try:
        return run.origin.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def _require_never_saved(run: RunFolder, started_from: str | None) -> None:
    """Raises `ValueError` if a run without checkpoints had some once: it does not start from
    scratch."""
    saved = [
        line["step"]
        for line in read_metrics(run.metrics)
        if line["event"] == "done"
        or (line["event"] == "val" and line.get("saved", True))
        or (line["event"] == "start" and line["step"] > 0)
    ]
    if saved:
        raise ValueError(
            f"{run.metrics} says that the run had a checkpoint at step {max(saved)}, and "
            f"{run.checkpoints} holds none; put it back, or choose another run.name to start from "
            "scratch"
        )
    if started_from is not None:
        raise ValueError(
            f"{run.path} was to begin with {started_from} and has no checkpoint yet; give --resume "
            f"{started_from}, or choose another run.name to start from scratch"
        )


def _warn_of_lost_init(run: RunFolder, given: str | None) -> None:
    """Warns where a run without checkpoints was last started with weights, and now is without."""
    starts = [line for line in read_metrics(run.metrics) if line["event"] == "start"]
    if given is None and starts and "init" in starts[-1]:
        log.warning(
            "warning: the last start of %s, which left no checkpoint, began with the weights of "
            "%s, and this one begins without: give --init again, or go on if that is meant",
            run.path, starts[-1]["init"],
        )  # fmt: skip


def _link_best(checkpoints: CheckpointFolder, content: dict[str, Any]) -> None:
    """Gives the best checkpoint its second name, which a kill right after the save prevented."""
    history = [Validation.from_state(result) for result in content["history"]]
    path = checkpoints.path(content["step"])
    is_result = bool(history) and history[-1].step == content["step"]
    if is_result and is_best(history) and path.exists():
        try:
            checkpoints.link_best(path)
        except OSError as error:  # a full disk; the run itself can continue
            log.warning(
                "warning: %s cannot be written: %s; make room there: training continues",
                checkpoints.best, error.strerror,
            )  # fmt: skip
