"""When a run saves, and its folder of checkpoints: writing, pruning, finding where to resume."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.system.failure import TrainingError
from pipeline.system.files import remove_partials, replacing
from pipeline.train.checkpoint import FORMAT, DamagedCheckpoint, read_verified, write_atomically
from pipeline.train.folder import Checkpoints

log = logging.getLogger("trainyard")


class SaveError(TrainingError):
    """A checkpoint cannot be written. `reason` names it and the last good one, `fix` what to do."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}; {fix} and start again")
        self.reason, self.fix = reason, fix


class SaveClock:
    """When the next checkpoint inside an epoch is due, every `every_sec`; None: never."""

    def __init__(self, every_sec: float | None) -> None:
        self._every_sec, self._since = every_sec, time.monotonic()
        self.last_step = -1
        """Before which step the last save was: a save that was decided on is due no more when
        another, at the end of an epoch, came between."""

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self._every_sec is not None and time.monotonic() - self._since >= self._every_sec

    def done(self, step: int) -> None:
        """Records a save before `step`."""
        self._since, self.last_step = time.monotonic(), step


class CheckpointFolder(Checkpoints):
    """The checkpoints of one run; keeps the newest `keep` and the best.

    Nothing else is deleted but what was read as damaged: a file that cannot be read now may be
    whole.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__(folder)
        self.keep = keep
        self._damaged: set[int] = set()  # steps of the checkpoints that were read as such

    def save(self, step: int, content: Mapping[str, Any], best: bool = False) -> Path:
        """Writes the checkpoint before step `step`, then removes all before it but the newest
        `keep`.

        Raises `SaveError` if it cannot be written.
        """
        path = self.path(step)
        with self._writing(path, content):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.remove_leftovers()
            write_atomically(path, {"format": FORMAT, **content})
        self._prune(step)
        if best:
            with self._writing(self.best, content):
                self.link_best(path)
        return path

    def _prune(self, step: int) -> None:
        """Removes all but the newest `keep` of those up to `step`, which has just been written."""
        try:
            for old in [there for there in self.steps() if there <= step][: -self.keep]:
                self.path(old).unlink(missing_ok=True)
        except OSError as error:  # the new one is written, that counts
            log.warning(
                "warning: old checkpoints in %s cannot be removed: %s; training continues, and the "
                "next save tries again",
                self.folder, error.strerror or error,
            )  # fmt: skip

    @contextmanager
    def _writing(self, path: Path, content: Mapping[str, Any]) -> Iterator[None]:
        """Raises `SaveError` where the body raises `OSError`."""
        try:
            yield
        except OSError as error:
            disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            free_mb, last = "?", "there is none yet"
            with contextlib.suppress(OSError):  # the disk may answer nothing any more
                folders = (self.folder, *self.folder.parents)
                free_bytes = shutil.disk_usage(next(f for f in folders if f.is_dir())).free
                free_mb = f"{free_bytes / 1e6:.1f}"
                if steps := self.steps():
                    last = f"the last good one is that of step {steps[-1]}"
            raise SaveError(
                f"checkpoint {path} cannot be written: {error.strerror} (it needs about "
                f"{_size_bytes(content) / 1e6:.1f} MB, and {free_mb} MB are free on its disk); "
                f"{last}",
                "make room there" if disk_full else "have that folder take files again",
            ) from error

    def remove_leftovers(self) -> None:
        """Removes what a killed save left: the folder has one writer, who calls this."""
        remove_partials(self.folder)
        for left in self.folder.glob(".*.pt.partial"):  # the name that early versions gave them
            with contextlib.suppress(OSError):
                left.unlink()

    def link_best(self, path: Path) -> None:
        """Makes `best.pt` another name of the checkpoint `path`."""
        with contextlib.suppress(FileNotFoundError):
            if self.best.samefile(path):
                return  # to rename one name of a file to another of its names does nothing
        with replacing(self.best) as partial:
            try:
                os.link(path, partial)
            except OSError:  # a file system without hard links
                partial.write_bytes(path.read_bytes())

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its path; None when there is none at all.

        A damaged one is reported and the one before it, if any, is tried; one that cannot be read
        ends the search, as `UnreadableCheckpoint`. Raises `ValueError` when there are some and none
        is whole or of a step: to start from scratch must be asked for.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.path(step), read_verified(self.path(step))
            except DamagedCheckpoint as error:
                self._damaged.add(step)
                then = "; the one before it is tried" if step > steps[0] else ""
                log.warning("warning: %s%s", error.what, then)
        if steps:
            if len(steps) == 1:
                what = f"the only checkpoint step-*.pt in {self.folder} is damaged"
            else:
                what = f"none of the {len(steps)} checkpoints step-*.pt in {self.folder} is whole"
            raise DamagedCheckpoint(what, self._other_way())
        if others := self.others():
            first = self.best if self.best in others else others[0]
            raise ValueError(
                f"{self.folder} has lost its checkpoints step-*.pt and still holds "
                f"{', '.join(path.name for path in others)}; resume from one of these by --resume "
                f"{first}, or choose another run.name to start from scratch"
            )
        return None

    def _other_way(self) -> str:
        """What to do when every step-*.pt is damaged: another file there may be whole."""
        for other in sorted(self.others(), key=lambda path: path != self.best):
            try:
                read_verified(other)
            except ValueError:
                continue  # damaged too, or of another program
            return (
                f"resume from {other.name}, which is whole, by --resume {other}, or choose another "
                "run.name to start from scratch"
            )
        return (
            "give --resume the path of another checkpoint, or choose another run.name to start "
            "from scratch"
        )

    def set_aside_after(self, step: int) -> None:
        """Leaves no checkpoint after `step`, from where the run resumes: the damaged are deleted,
        the others get another name."""
        for later in [there for there in self.steps() if there > step]:
            path = self.path(later)
            if later in self._damaged:
                path.unlink()
                continue
            aside = path.with_name(f"later-{path.name}")
            path.replace(aside)
            log.info("the checkpoint of step %d is kept as %s: remove it if it is not needed",
                     later, aside)  # fmt: skip


def _size_bytes(content: Any) -> int:
    """Size of the tensors in `content`; the rest is negligible."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(_size_bytes, content.values()))
    return 0
