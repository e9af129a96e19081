"""Checkpoints: written atomically, verified before use, never code.

A checkpoint is what `torch.save` writes: a zip file whose records carry a CRC-32 each, so plain
`torch.load` reads it and Python's `zipfile` verifies it. Only rank 0 writes and reads.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.config.reading import config_of, overrides
from pipeline.data.normalisation import Normalisation
from pipeline.model.resnet import make_model
from pipeline.system.failure import TrainingError
from pipeline.system.files import remove_partials, replacing
from pipeline.train.folder import Checkpoints

log = logging.getLogger("trainyard")

FORMAT = 1
"""Version of a checkpoint's content; raised when a reader of the old one would go wrong."""


class DamagedCheckpoint(ValueError):
    """The file is not a complete checkpoint."""


class SaveError(TrainingError):
    """A checkpoint cannot be written. `reason` names it and the last good one, `fix` what to do;
    `disk_full`: free space is all that it needs."""

    def __init__(self, reason: str, fix: str, disk_full: bool) -> None:
        super().__init__(f"{reason}; {fix} and start again")
        self.reason, self.fix, self.disk_full = reason, fix, disk_full


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` so that `path` holds either the old file or the whole new one.

    Raises `OSError`, and leaves no partial file, if it cannot be written.
    """
    try:
        with replacing(path) as partial, open(partial, "wb") as file:
            torch.save(dict(content), file)
    except OSError:
        raise
    except Exception as error:  # torch 2.13: a RuntimeError, the file is shorter than it should be
        refused: BaseException | None = error
        while refused is not None and not isinstance(refused, OSError):
            refused = refused.__cause__ or refused.__context__
        if refused is None:
            raise
        raise OSError(refused.errno, refused.strerror, str(path)) from error


def read_verified(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, after comparing every record's CRC-32.

    Tensors come to the CPU. Raises `ValueError` when the file is missing or of another format
    version, `DamagedCheckpoint` when it is not complete. Never runs code from the file.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist; give the path of a .pt file")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"checksum of {broken} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds on a damaged file
        reason = str(error).split("\n")[0]
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"checkpoint {path} has format {found!r}, this version reads {FORMAT}; "
            "it was not written by this program or by another version of it"
        )
    return content


@dataclass(frozen=True)
class Trained:
    """The network of a checkpoint, without what only the training itself needs.

    config: the settings of the training; those unknown to its version have their defaults.
    classes: names by label.
    normalisation: what the network expects pixels to be normalised by.
    weights: parameters and buffers by name, on the CPU; BN's statistics are the mean over ranks.
    step, world_size: the step of the training, and its number of ranks; 0 and 1 for imported
        weights.
    fingerprint: the facts that make it this run; imported weights name their file alone.
    excluded: of the sets train and val, the images that the run continued without.
    """

    path: Path
    config: Config
    classes: list[str]
    normalisation: Normalisation
    weights: dict[str, Tensor]
    step: int
    world_size: int
    fingerprint: Mapping[str, Any]
    excluded: Mapping[str, Any]

    def configured(self, given: Any, names: Sequence[str]) -> Config:
        """The settings, overridden by those of `names` on the parsed command line.

        Raises `ConfigError` if they do not fit together.
        """
        return overrides(given, names, yaml.safe_load(self.config.to_yaml()))

    def build(self, device: torch.device, config: Config | None = None) -> nn.Module:
        """The network with its weights on `device`, in eval mode.

        The settings model.norm and optim.amp of `config` choose the norm backend; None: the
        reference, which runs everywhere. Raises `ValueError` if they cannot run on `device`.
        """
        if config is None:
            reference = dataclasses.replace(self.config.model, norm="reference")
            config = dataclasses.replace(self.config, model=reference)
        model = make_model(config, len(self.classes), device)
        model.load_state_dict(self.weights)
        return model.eval()

    @property
    def digest(self) -> str:
        """Digest of the weights, 16 hex digits, which identifies the network."""
        summary = hashlib.sha256()
        for name, tensor in self.weights.items():
            summary.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return summary.hexdigest()[:16]


def read(path: Path) -> Trained:
    """Reads the network in the checkpoint `path`. Raises as `read_verified` does."""
    return trained(path, read_verified(path))


def trained(path: Path, content: Mapping[str, Any]) -> Trained:
    """The network in `content`, which `read_verified` has read from `path`."""
    return Trained(
        path,
        config_of(yaml.safe_load(content["config"])),
        list(content["classes"]),
        Normalisation.from_state(content["normalisation"]),
        content["model"],
        content["step"],
        content["world_size"],
        content["fingerprint"],
        content["excluded"],
    )


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
    """The checkpoints of one run; keeps the newest `keep` and the best."""

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__(folder)
        self.keep = keep
        self._disk_was_full = False

    def save(self, step: int, content: Mapping[str, Any], best: bool = False) -> Path:
        """Writes the checkpoint before step `step`, then removes all but the newest `keep`.

        Raises `SaveError` if it cannot be written.
        """
        path = self.path(step)
        with self._writing(path, content):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_partials(self.folder)  # left by a killed save: the folder has one writer
            write_atomically(path, {"format": FORMAT, **content})
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink(missing_ok=True)
        if best:
            with self._writing(self.best, content):
                self.link_best(path)
        if self._disk_was_full:
            self._disk_was_full = False
            log.info("there is room again: checkpoint %s is written", path)
        return path

    def save_unless_full(self, step: int, content: Mapping[str, Any], best: bool = False) -> None:
        """As `save`, but a full disk costs this checkpoint only, not the run, and is reported once
        until there is room again. Not for the last save, nor when there is no checkpoint yet."""
        try:
            self.save(step, content, best)
        except SaveError as error:
            if not error.disk_full or not self.steps():
                raise
            if not self._disk_was_full:
                log.warning(
                    "warning: %s; %s: training continues and tries again at the next save%s",
                    error.reason, error.fix,
                    ", but best.pt stays that of an earlier validation" if best else "",
                )  # fmt: skip
            self._disk_was_full = True

    @contextmanager
    def _writing(self, path: Path, content: Mapping[str, Any]) -> Iterator[None]:
        """Raises `SaveError` where the body raises `OSError`."""
        try:
            yield
        except OSError as error:
            steps, disk_full = self.steps(), error.errno in (errno.ENOSPC, errno.EDQUOT)
            folders = (self.folder, *self.folder.parents)
            free_bytes = shutil.disk_usage(next(f for f in folders if f.is_dir())).free
            last = "there is none yet"
            if steps:
                last = f"the last good one is that of step {steps[-1]}"
            raise SaveError(
                f"checkpoint {path} cannot be written: {error.strerror} (it needs about "
                f"{_size_bytes(content) / 1e6:.1f} MB, and {free_bytes / 1e6:.1f} MB are free on "
                f"its disk); {last}",
                "make room there" if disk_full else "have that folder take files again",
                disk_full,
            ) from error

    def link_best(self, path: Path) -> None:
        """Makes `best.pt` another name of the checkpoint `path`."""
        with replacing(self.best) as partial:
            try:
                os.link(path, partial)
            except OSError:  # a file system without hard links
                partial.write_bytes(path.read_bytes())

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its path; None when there is none at all.

        A damaged one is reported and the one before it is tried. Raises `DamagedCheckpoint` when
        there are some and none is whole: to start from scratch must be asked for.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.path(step), read_verified(self.path(step))
            except DamagedCheckpoint as error:
                log.warning("warning: %s; the one before it is tried", error)
        if not steps:
            return None
        raise DamagedCheckpoint(
            f"none of the {len(steps)} checkpoints in {self.folder} is whole; remove the folder "
            "to start from scratch, or give --resume the path of another checkpoint"
        )

    def delete_after(self, step: int) -> None:
        """Removes checkpoints after `step`: the run resumes from there."""
        for later in self.steps():
            if later > step:
                self.path(later).unlink()


def _size_bytes(content: Any) -> int:
    """Size of the tensors in `content`; the rest is negligible."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(_size_bytes, content.values()))
    return 0


def require_same_run(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compares the facts that make two runs the same one. Raises `ValueError` naming both values
    of each that differs, or that `stored` is of no run."""
    if "weights from" in stored:  # made by pipeline.export, without a training
        raise ValueError(
            f"checkpoint {path} holds weights imported from {stored['weights from']}, so it "
            "resumes no training; give it to pipeline.evaluate or pipeline.predict"
        )
    differences = [
        f"{name}: {_short(stored.get(name))} in the checkpoint, {_short(value)} now"
        for name, value in wanted.items()
        if stored.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"checkpoint {path} belongs to another run ({'; '.join(differences)}); set these back, "
            "or choose another run.name"
        )


def _short(value: Any) -> str:
    return "(not stored)" if value is None else str(value)
