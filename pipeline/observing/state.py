"""How a run stands, read from its folder: running, finished, stopped, failed or interrupted."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.observing.lock_holder import Holder, is_locked, last_holder
from pipeline.reporting.networks import network_of
from pipeline.run_files import read_lines, read_settings

State = Literal["running", "finished", "stopped", "failed", "interrupted"]

_SIGNS = ("metrics.jsonl", "log.txt", "checkpoints", "lock")
"""What a run that makes progress writes to; of a folder the time of the newest file in it."""

_SILENT_SEC = 600.0
"""A run with no step_timeout_sec on a host whose locks are not seen counts as running so long."""

_STEPS = re.compile(r" batch: .* steps \d+ to (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class RunState:
    """One run as it stands.

    `step` is the number of steps done, of `total_steps`; `epoch` the passes over the training
    images, of `epochs` (of a run whose length is set in steps: whole passes, and None); top-1 is a
    fraction; `last_sign` is in seconds since 1970. Else None means not known.
    `note` says what the state does not: the signal, the first cause of a failure.
    """

    folder: Path
    state: State
    note: str
    network: str | None
    step: int
    total_steps: int | None
    epoch: float | None
    epochs: float | None
    best_top1: float | None
    last_sign: float | None
    holder: Holder | None

    @property
    def age_sec(self) -> float | None:
        """Seconds since its last sign of life; 0 for one from the future, as clocks differ."""
        return None if self.last_sign is None else max(0.0, time.time() - self.last_sign)

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, in plain values."""
        holder = self.holder
        return {
            "run": self.folder.name, "folder": str(self.folder), "state": self.state,
            "note": self.note, "network": self.network, "step": self.step,
            "total_steps": self.total_steps, "epoch": self.epoch, "epochs": self.epochs,
            "best_top1": self.best_top1, "last_sign": self.last_sign, "age_sec": self.age_sec,
            "host": holder and holder.host, "process": holder and holder.process,
            "slurm_job": holder and holder.slurm_job, "since": holder and holder.since,
        }  # fmt: skip


def is_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`, however far it came: it holds config.yaml or lock."""
    return (folder / "config.yaml").is_file() or (folder / "lock").is_file()


def read_state(folder: Path) -> RunState:
    """The run in `folder` as it stands now. Raises ValueError or OSError if it cannot be read."""
    # Before the metrics: a run that ends in between then counts as running, not as interrupted.
    holder, locked = last_holder(folder), is_locked(folder)
    settings = _settings(folder, locked)
    lines = read_lines(folder)
    sign = last_sign(folder)
    if not locked and holder and not holder.is_here:
        limit = settings.get("run.step_timeout_sec") or _SILENT_SEC
        locked_there = sign is not None and time.time() - sign < limit
    else:
        locked_there = False
    state, note = _state_of(folder, lines, holder, locked, locked_there)
    total, epochs = _total_steps(folder, settings), settings.get("schedule.epochs")
    step = max((line["step"] for line in lines if isinstance(line.get("step"), int)), default=0)
    tops = [line["top1"] for line in lines if line.get("event") == "val" and "top1" in line]
    return RunState(
        folder=folder,
        state=state,
        note=note,
        network=_network(settings),
        step=step,
        total_steps=total,
        epoch=step / total * epochs if total and epochs else _last_epoch(lines),
        epochs=epochs,
        best_top1=max(tops, default=None),
        last_sign=sign,
        holder=holder,
    )


def _settings(folder: Path, locked: bool) -> dict[str, Any]:
    """None of a run that did not come as far, or that is just writing them."""
    if not (folder / "config.yaml").is_file():
        return {}
    try:
        return read_settings(folder)
    except ValueError:
        if locked:
            return {}
        raise


def _state_of(
    folder: Path, lines: list[dict[str, Any]], holder: Holder | None, locked: bool,
    locked_there: bool,
) -> tuple[State, str]:  # fmt: skip
    """The state and its note. A run's start removes what the end before it left, so that a word on
    the end is of the last start."""
    if locked:
        return "running", "" if lines else "starting"
    failure = _first_line(folder / "failure.txt").removeprefix("error: ")
    if any(line.get("event") == "done" for line in lines):
        return "finished", f"a later start failed: {failure}" if failure else ""
    if failure:
        return "failed", failure
    stopped = _first_line(folder / "stopped.txt")
    if stopped:
        return "stopped", f"by {stopped}"
    if locked_there and holder is not None:
        return "running", f"by the age of its files; the locks of {holder.host} are not seen here"
    return "interrupted", "it left no word of its end"


def last_sign(folder: Path) -> float | None:
    """When the run last wrote anything, in seconds since 1970; None if it never did."""
    found = []
    for name in _SIGNS:
        try:
            found.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(found, default=None)


def _last_epoch(lines: list[dict[str, Any]]) -> float | None:
    return max((line["epoch"] for line in lines if "epoch" in line), default=None)


def _first_line(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except FileNotFoundError:
        return ""


def _network(settings: dict[str, Any]) -> str | None:
    model = {k.partition(".")[2]: v for k, v in settings.items() if k.startswith("model.")}
    return network_of(model).label if model else None


def _total_steps(folder: Path, settings: dict[str, Any]) -> int | None:
    """Length of the run: as set, or as its last start has said, since it hangs on the data."""
    if settings.get("schedule.steps") is not None:
        return int(settings["schedule.steps"])
    try:
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    said = _STEPS.findall(text)
    return int(said[-1]) if said else None
