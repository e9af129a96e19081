"""How a run stands, read from its folder: whether it runs, or how it ended."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.model.network import network_of
from pipeline.runs.lock_holder import is_locked
from pipeline.runs.tail import Tail
from pipeline.train.folder import Holder, RunFolder

State = Literal["running", "silent", "finished", "stopped", "failed", "interrupted"]
"""silent: on a host whose locks are not seen here, and it has written nothing for longer than
run.step_timeout_sec. It may be dead; or it validates, which may take any time and writes nothing on
the way. interrupted: it ended without a word, for it ran on this host and its lock is free."""

_SILENT_SEC = 600.0
"""A run with no step_timeout_sec on a host whose locks are not seen counts as running so long."""

_SPEEDS = 5
"""Lines of training whose median is a run's speed: one alone may have met a busy machine."""


@dataclass(frozen=True)
class RunState:
    """One run as it stands.

    `step` is the number of steps done, of `total_steps`; `epoch` the passes over the training
    images, of `epochs` (of a run whose length is set in steps and whose start is not known: whole
    passes, and None); top-1 is a fraction; `last_sign` is in seconds since 1970. Else None means
    not known.
    `note` says what the state does not: the signal, the first cause of a failure.
    `images_per_sec` is the median of the last lines of training, `latest` the very last of them;
    `settings` are all by `part.name`, none of a run that did not come as far.
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
    images_per_sec: float | None
    last_sign: float | None
    holder: Holder | None
    latest: Mapping[str, Any]
    settings: Mapping[str, Any]

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
            "best_top1": self.best_top1, "images_per_sec": self.images_per_sec,
            "last_sign": self.last_sign, "age_sec": self.age_sec,
            "host": holder and holder.host, "process": holder and holder.process,
            "slurm_job": holder and holder.slurm_job, "since": holder and holder.since,
        }  # fmt: skip


def read_state(folder: Path) -> RunState:
    """The run in `folder` as it stands now. Raises ValueError or OSError if it cannot be read."""
    return RunReader(folder).read()


class RunReader:
    """How one run stands, looked at again and again; a look reads only what is new."""

    def __init__(self, folder: Path) -> None:
        self._run = RunFolder(folder)
        self._metrics, self._so_far = Tail(self._run.metrics), _SoFar()
        self._settings: tuple[tuple[int, ...], dict[str, Any]] = ((), {})

    def read(self) -> RunState:
        """As it stands now. Raises ValueError or OSError if it cannot be read."""
        run = self._run
        # Before the metrics: a run that ends in between then counts as running, not as interrupted.
        holder, locked = run.holder(), is_locked(run)
        settings = self._settings_now(locked)
        so_far = self._metrics_now()
        sign = last_sign(run)
        limit_sec = settings.get("run.step_timeout_sec") or _SILENT_SEC
        if locked:
            state, note = _running(so_far)
        else:
            state, note = _ended(run, so_far) or _without_word(holder, sign, limit_sec)
        total, (epoch, epochs) = self._total_steps(settings), self._epochs(settings)
        return RunState(
            folder=run.path,
            state=state,
            note=note,
            network=_network(settings),
            step=so_far.step,
            total_steps=total,
            epoch=epoch,
            epochs=epochs,
            best_top1=so_far.best_top1,
            images_per_sec=statistics.median(so_far.speeds) if so_far.speeds else None,
            last_sign=sign,
            holder=holder,
            latest=so_far.latest,
            settings=settings,
        )

    def _settings_now(self, locked: bool) -> dict[str, Any]:
        """None of a run that did not come as far, or that is just writing them."""
        try:
            about = self._run.config.stat()
        except FileNotFoundError:
            return {}
        version = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        if self._settings[0] != version:
            try:
                self._settings = (version, self._run.settings())
            except ValueError:
                if locked:
                    return {}
                raise
        return self._settings[1]

    def _metrics_now(self) -> _SoFar:
        anew, lines = self._metrics.read()
        if anew:
            self._so_far = _SoFar()
        for line in lines:
            self._so_far.add(line)
        return self._so_far

    def _total_steps(self, settings: dict[str, Any]) -> int | None:
        """Length of the run: as set, or as its last start found it from the data."""
        set_to = settings.get("schedule.steps")
        return self._so_far.start.get("total_steps") if set_to is None else int(set_to)

    def _epochs(self, settings: dict[str, Any]) -> tuple[float | None, float | None]:
        """Passes over the training images done, and all of them."""
        step, total = self._so_far.step, self._total_steps(settings)
        epochs, batch = settings.get("schedule.epochs"), settings.get("data.global_batch_size")
        images = self._so_far.start.get("train_images")
        if epochs is None and total and batch and images:
            epochs = total * batch / images
        return (step / total * epochs if total and epochs else self._so_far.epoch), epochs


@dataclass
class _SoFar:
    """What the lines of metrics come to; those that are cut or of another make add nothing."""

    any: bool = False
    done: bool = False
    step: int = 0
    epoch: float | None = None
    best_top1: float | None = None
    start: dict[str, Any] = field(default_factory=dict)
    latest: dict[str, Any] = field(default_factory=dict)
    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=_SPEEDS))

    def add(self, line: bytes) -> None:
        """Takes in the next line."""
        try:
            metrics = json.loads(line)
        except ValueError:
            return
        if not isinstance(metrics, dict):
            return
        event, step, epoch, top1 = map(metrics.get, ("event", "step", "epoch", "top1"))
        if event == "start":
            self.start = metrics
        else:
            self.any = True
        self.done = self.done or event == "done"
        if isinstance(step, int):
            self.step = max(self.step, step)
        if isinstance(epoch, int | float):
            self.epoch = max(self.epoch or epoch, epoch)
        if event == "val" and isinstance(top1, int | float):
            self.best_top1 = max(self.best_top1 or top1, top1)
        if event == "train":
            self.latest = metrics
            if isinstance(speed := metrics.get("images_per_sec"), int | float):
                self.speeds.append(speed)


def _running(so_far: _SoFar) -> tuple[State, str]:
    return "running", "" if so_far.any else "starting"


def _ended(run: RunFolder, so_far: _SoFar) -> tuple[State, str] | None:
    """What a run that is not locked has said of its end; None: nothing. A start removes what the
    end before it left, so that a word on the end is of the last start."""
    failure, stop = run.first_cause(), run.stopped()
    if so_far.done:
        return "finished", f"a later start failed: {failure}" if failure else ""
    if failure:
        return "failed", failure
    if stop is None:
        return None
    return "stopped", "" if stop.signal is None else f"by {stop.signal} before step {stop.step}"


def _without_word(holder: Holder | None, sign: float | None, limit_sec: float) -> tuple[State, str]:
    """Of a run whose lock is not seen, and that has said nothing of an end."""
    if holder is None or holder.is_here:
        return "interrupted", "it left no word of its end"
    age_sec = 0.0 if sign is None else max(0.0, time.time() - sign)
    if age_sec < limit_sec:
        return "running", f"by the age of its files; the locks of {holder.host} are not seen here"
    return "silent", f"no sign for {duration(age_sec)}; its host {holder.host} is not this one"


def last_sign(run: RunFolder) -> float | None:
    """When the run last wrote anything, in seconds since 1970; None if it never did."""
    found = []
    # What a run that makes progress writes to; of a folder the time of the newest file in it.
    for path in (run.metrics, run.log, run.checkpoints, run.lock):
        with contextlib.suppress(OSError):
            found.append(path.stat().st_mtime)
    return max(found, default=None)


def duration(seconds: float) -> str:
    """Rounded down to one unit: 12 s, 3 min, 5 h, 2 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"


def _network(settings: dict[str, Any]) -> str | None:
    model = {k.partition(".")[2]: v for k, v in settings.items() if k.startswith("model.")}
    return network_of(model).label if model else None
