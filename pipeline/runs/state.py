"""The state of a run, read from its folder: whether it is running, or how it ended.

Whether a job holds the folder is determined without taking its lock: taking it, even shared and for
a moment, could refuse a run that starts just then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import statistics
import struct
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.model.network import network_in
from pipeline.runs.tail import Tail
from pipeline.train.events import metrics_of
from pipeline.train.folder import Holder, RunFolder

State = Literal["running", "silent", "finished", "stopped", "failed", "interrupted"]
"""silent: on a host whose locks are not visible here, and it has written nothing for longer than
run.step_timeout_sec. It may be dead; or it is validating, which may take any time and writes
nothing. interrupted: it ended without a record, as it ran on this host and its lock is free."""

_FLOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, process

_SILENT_SEC = 600.0
"""Time that a run without step_timeout_sec on a host whose locks are not visible counts as
running."""

_SPEEDS = 5
"""Lines of training whose median is a run's speed: a single one may be from a busy moment."""


@dataclass(frozen=True)
class RunState:
    """The state of one run.

    `step` is the number of steps done, of `total_steps`; `epoch` the passes over the training
    images, of `epochs`; top-1 is a fraction, with `ema` that of the average of the weights if there
    is one; `last_sign` is in seconds since 1970. None: not known.
    `note` adds to the state: the signal, or the first cause of a failure.
    `images_per_sec` is the median of the last lines of training, `latest` the very last of them;
    `settings` are all by `part.name`, empty for a run that did not get that far.
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
    best_ema_top1: float | None
    images_per_sec: float | None
    last_sign: float | None
    holder: Holder | None
    latest: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def age_sec(self) -> float | None:
        """Seconds since its last sign of life; 0 for one in the future, as clocks differ."""
        return None if self.last_sign is None else max(0.0, time.time() - self.last_sign)

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, in plain values."""
        holder = self.holder
        return {
            "run": self.folder.name, "folder": str(self.folder), "state": self.state,
            "note": self.note, "network": self.network, "step": self.step,
            "total_steps": self.total_steps, "epoch": self.epoch, "epochs": self.epochs,
            "best_top1": self.best_top1, "best_ema_top1": self.best_ema_top1,
            "images_per_sec": self.images_per_sec,
            "last_sign": self.last_sign, "age_sec": self.age_sec,
            "host": holder and holder.host, "process": holder and holder.process,
            "slurm_job": holder and holder.slurm_job, "since": holder and holder.since,
        }  # fmt: skip


def read_state(folder: Path) -> RunState:
    """The present state of the run in `folder`. Raises ValueError or OSError if it cannot be
    read."""
    return RunReader(folder).read()


class RunReader:
    """Reads the state of one run repeatedly; each call reads only what is new."""

    def __init__(self, folder: Path) -> None:
        self._run = RunFolder(folder)
        self._metrics, self._so_far = Tail(self._run.metrics), _SoFar()
        self._settings: tuple[tuple[int, ...], dict[str, Any]] = ((), {})

    def read(self) -> RunState:
        """The present state. Raises ValueError or OSError if it cannot be read."""
        run = self._run
        # Before the metrics: a run that ends in between then counts as running, not as interrupted.
        holder, locked = run.holder(), is_locked(run)
        settings = self._settings_now(locked)
        from_start, lines = self._metrics.read()
        if from_start:
            self._so_far = _SoFar()
        for line in lines:
            self._so_far.add(line)
        so_far, sign = self._so_far, last_sign(run)
        limit_sec = settings.get("run.step_timeout_sec") or _SILENT_SEC
        state: State
        if locked:
            state, note = "running", "" if so_far.any else "starting"
        else:
            state, note = _ended(run, so_far) or _without_word(holder, sign, limit_sec)
        total = so_far.total_steps(settings)
        epochs = so_far.epochs(settings, total)
        return RunState(
            folder=run.path,
            state=state,
            note=note,
            network=network_in(settings).label if settings else None,
            step=so_far.step,
            total_steps=total,
            epoch=so_far.step / total * epochs if total and epochs else None,
            epochs=epochs,
            best_top1=so_far.best_top1,
            best_ema_top1=so_far.best_ema_top1,
            images_per_sec=statistics.median(so_far.speeds) if so_far.speeds else None,
            last_sign=sign,
            holder=holder,
            latest=so_far.latest,
            settings=settings,
        )

    def _settings_now(self, locked: bool) -> dict[str, Any]:
        """The settings; none for a run that did not get that far or is just writing them."""
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


@dataclass
class _SoFar:
    """The sum of the lines of metrics; truncated or foreign lines add nothing."""

    any: bool = False
    done: bool = False
    step: int = 0
    best_top1: float | None = None
    best_ema_top1: float | None = None
    start: dict[str, Any] = field(default_factory=dict)
    latest: dict[str, Any] = field(default_factory=dict)
    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=_SPEEDS))

    def add(self, line: bytes) -> None:
        """Takes in the next line."""
        metrics = metrics_of(line)
        if metrics is None:
            return
        event, step = metrics["event"], metrics["step"]
        if event == "start":
            self.start = metrics
        else:
            self.any = True
        self.done = self.done or event == "done"
        if isinstance(step, int):
            self.step = max(self.step, step)
        if event == "val":
            self.best_top1 = _higher(self.best_top1, metrics["top1"])
            self.best_ema_top1 = _higher(self.best_ema_top1, metrics.get("ema_top1"))
        if event == "train":
            self.latest = metrics
            if isinstance(speed := metrics.get("images_per_sec"), int | float):
                self.speeds.append(speed)

    def total_steps(self, settings: Mapping[str, Any]) -> int | None:
        """Length of the run: as set, or as its last start found it from the data."""
        set_to = settings.get("schedule.steps")
        return self.start.get("total_steps") if set_to is None else int(set_to)

    def epochs(self, settings: Mapping[str, Any], total_steps: int | None) -> float | None:
        """Length of the run in passes over the training images, as set or by their number."""
        set_to: float | None = settings.get("schedule.epochs")
        batch, images = settings.get("data.global_batch_size"), self.start.get("train_images")
        if set_to is None and total_steps and batch and images:
            return float(total_steps * batch / images)
        return set_to


def _higher(one: float | None, other: float | None) -> float | None:
    return max((share for share in (one, other) if share is not None), default=None)


def _ended(run: RunFolder, so_far: _SoFar) -> tuple[State, str] | None:
    """What an unlocked run has recorded about its end; None: nothing. A start removes the records
    of earlier ends, so that any record is of the last start."""
    failure, stop = run.first_cause(), run.stopped()
    if so_far.done:
        return "finished", f"a later start failed: {failure}" if failure else ""
    if failure:
        return "failed", failure
    if stop is None:
        return None
    return "stopped", "" if stop.signal is None else f"by {stop.signal} before step {stop.step}"


def _without_word(holder: Holder | None, sign: float | None, limit_sec: float) -> tuple[State, str]:
    """The state of a run whose lock is not visible and that has recorded no end."""
    if holder is None or holder.is_here:
        return "interrupted", "it left no word of its end"
    age_sec = 0.0 if sign is None else max(0.0, time.time() - sign)
    if age_sec < limit_sec:
        return "running", f"by the age of its files; the locks of {holder.host} are not seen here"
    return "silent", f"no sign for {duration(age_sec)}; its host {holder.host} is not this one"


def last_sign(run: RunFolder) -> float | None:
    """Time of the run's last write, in seconds since 1970; None if it never wrote."""
    found = []
    # Files that a run in progress writes to; for a folder the time of the newest file in it.
    for path in (run.metrics, run.log, run.checkpoints, run.lock):
        with contextlib.suppress(OSError):
            found.append(path.stat().st_mtime)
    return max(found, default=None)


def duration(seconds: float) -> str:
    """A duration rounded down to one unit: 12 s, 3 min, 5 h, 2 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"


def is_locked(run: RunFolder) -> bool:
    """Whether a lock on the run is visible from this host.

    Sees every lock of this host and, where the file server says (NFS), those of others;
    on Lustre the locks of other hosts are invisible. Raises `OSError` if the file system does not
    answer: a run is not known to have ended because of that.
    """
    try:
        about = run.lock.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return _in_table(about, run.holder()) or _server_says(run.lock)


def _in_table(about: os.stat_result, holder: Holder | None) -> bool:
    """Whether /proc/locks, the kernel's own table, has a `flock` of the file.

    The file is identified by device and inode. On overlayfs and btrfs stat gives an anonymous
    device (major 0), not the table's: there by inode and the process that the lock file names.
    """
    try:
        with open("/proc/locks", encoding="ascii") as table:
            rows = [line.split() for line in table]
    except OSError:
        return False
    for row in rows:
        # 1: FLOCK ADVISORY WRITE 13448 fe:00:5349560 0 EOF; "->" marks one that only waits
        if len(row) < 6 or row[1] != "FLOCK":
            continue
        major, minor, inode = row[5].split(":")
        same_device = os.makedev(int(major, 16), int(minor, 16)) == about.st_dev
        same_process = holder is not None and row[4] == str(holder.process)
        if int(inode) != about.st_ino:
            continue
        if same_device or (os.major(about.st_dev) == 0 and same_process):
            return True
    return False


def _server_says(lock: Path) -> bool:
    """Whether a lock would conflict, by F_GETLK, which takes none.

    On NFS the kernel turns a `flock` into a lock of the whole file at the server, which answers
    for all hosts; a local file system knows of no such lock.
    """
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with contextlib.suppress(OSError), open(lock, "rb") as file:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, wanted)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    return False
