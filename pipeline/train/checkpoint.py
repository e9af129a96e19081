"""A checkpoint: one file, written atomically, verified before use, never code.

It is the zip file that `torch.save` writes, which plain `torch.load` reads, and the zip's comment
holds the SHA-256 of all that torch wrote. A file is read once, into memory: what was verified is
what torch then reads. Only rank 0 writes and reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import yaml
from torch import Tensor, nn

from pipeline.config import Config, later_defaults, require
from pipeline.config.idle import idle_settings
from pipeline.config.reading import config_of, overrides
from pipeline.config.training import LENGTH, Weights
from pipeline.data.normalisation import Normalisation
from pipeline.model.backends import choose_backend
from pipeline.model.resnet import build_network
from pipeline.system.failure import TrainingError
from pipeline.system.files import content_of, replacing
from pipeline.train.foreign import (
    beginning,
    inside,
    is_exported,
    other_format,
    refusal,
    tensors_in_words,
)

FORMAT = 1
"""Version of a checkpoint's content; raised when a reader of the old one would go wrong."""

_OF_A_NETWORK = (
    "config", "classes", "normalisation", "model", "step", "world_size", "fingerprint",
)  # fmt: skip
"""The part of the content that `read` needs."""

_COMMENT = b"trainyard sha256 "
_COMMENT_BYTES = len(_COMMENT) + 64  # the digest in hex
_ZIP_START = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES = 22  # without a comment, whose length are the last two


class DamagedCheckpoint(ValueError):
    """The file is not what was written: cut, changed, or something else. `what` says so, and the
    message adds what to do."""

    def __init__(
        self, what: str, cure: str = "give another copy of it, or an earlier checkpoint"
    ) -> None:
        super().__init__(f"{what}; {cure}")
        self.what = what


class UnreadableCheckpoint(TrainingError):
    """The file cannot be read now, or not held in memory; nothing is known about what it holds."""


class _Hashed:
    """The file that `torch.save` writes to, with the SHA-256 of what it wrote and the last bytes of
    that."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.end = file, hashlib.sha256(), b""

    def write(self, part: bytes) -> int:
        """Writes `part`, any buffer of bytes."""
        self.digest.update(part)
        self.end = (self.end + bytes(part[-_ZIP_END_BYTES:]))[-_ZIP_END_BYTES:]
        return self._file.write(part)

    def flush(self) -> None:
        """Hands what was written to the system."""
        self._file.flush()


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` so that `path` holds either the old file or the whole new one.

    Raises `OSError`, and leaves no partial file, if it cannot be written.
    """
    try:
        with replacing(path) as partial, open(partial, "wb") as file:
            hashed = _Hashed(file)
            torch.save(dict(content), cast(BinaryIO, hashed))
            at_end = hashed.end.startswith(_ZIP_END) and hashed.end.endswith(b"\0\0")
            assert at_end, "torch.save writes a zip file without a comment"
            file.seek(-2, os.SEEK_END)
            file.write(_end(hashed.digest.hexdigest()))
    except OSError:
        raise
    except Exception as error:  # torch 2.13: a RuntimeError, the file is shorter than it should be
        refused: BaseException | None = error
        while refused is not None and not isinstance(refused, OSError):
            refused = refused.__cause__ or refused.__context__
        if refused is None:
            raise
        raise OSError(refused.errno, refused.strerror, str(path)) from error


def _end(digest: str) -> bytes:
    """The last bytes of a checkpoint: the length of the zip's comment, and the comment."""
    return struct.pack("<H", _COMMENT_BYTES) + _COMMENT + digest.encode()


def read_verified(path: Path) -> dict[str, Any]:
    """Reads a checkpoint. Its digest is compared first; of one from before there was a digest, the
    CRC-32 of every record.

    Tensors come to the CPU. Raises `ValueError` when the file is missing, of another format version
    or of another program, `DamagedCheckpoint` when it is not whole, `UnreadableCheckpoint` when the
    system does not let it be read. Never runs code from the file.
    """
    return verified(path, _bytes_of(path))


def verified(path: Path, stored: bytes) -> dict[str, Any]:
    """As `read_verified`, of the file's bytes."""
    if (what := other_format(stored)) is not None:
        raise ValueError(refusal(path, what, is_exported(stored)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, which is refused below
            content = torch.load(_verified(path, stored), map_location="cpu", weights_only=True)
    except DamagedCheckpoint:
        raise
    except Exception as error:  # of a file that is whole: code in it, or too little memory
        if (what := inside(stored)) is not None:
            raise ValueError(refusal(path, what)) from error
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UnreadableCheckpoint(
            f"checkpoint {path} is whole but cannot be loaded: {reason}; give this process more "
            "memory, or the version of torch that wrote it, and start again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        if (what := tensors_in_words(content)) is not None:
            raise ValueError(refusal(path, what))
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"checkpoint {path} has format {found!r}, this version reads {FORMAT}; "
            "it was not written by this program or by another version of it"
        )
    return content


def _bytes_of(path: Path) -> bytes:
    """The content of a file. Raises `ValueError` if there is none, `UnreadableCheckpoint` if the
    system refuses it and goes on to do so."""
    with contextlib.suppress(OSError):  # which reading it will name
        if path.exists() and not path.is_file():
            raise ValueError(f"checkpoint {path} is no plain file; give the path of a .pt file")
    try:
        return content_of(path, f"checkpoint {path}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"checkpoint {path} does not exist; give the path of a .pt file"
        ) from error
    except OSError as error:
        raise UnreadableCheckpoint(
            f"checkpoint {path} cannot be read: {error.strerror or error}; it may be whole, and "
            "nothing was deleted: start again when its file system gives it, or give another file"
        ) from error


def _verified(path: Path, stored: bytes) -> io.BytesIO:
    """What torch may read of a file's bytes. Raises `DamagedCheckpoint` if they are not those that
    were written."""
    end = len(stored) - _COMMENT_BYTES
    if end >= _ZIP_END_BYTES and stored.startswith(_COMMENT, end):
        digest = hashlib.sha256(memoryview(stored)[: end - 2])
        digest.update(b"\0\0")  # torch wrote no comment
        if not stored.endswith(_end(digest.hexdigest())):
            raise DamagedCheckpoint(f"checkpoint {path} is damaged: its SHA-256 is wrong")
        return io.BytesIO(stored)
    # A flipped bit spoils one of the two ends, and a crash leaves zeros: neither is another file.
    cut = _ZIP_START.startswith(stored[:4]) or stored[:4] == bytes(4)
    if not cut and stored[-_ZIP_END_BYTES:][:4] != _ZIP_END:
        raise DamagedCheckpoint(
            f"{path} is no checkpoint: it begins with {beginning(stored)}, and a checkpoint is a "
            "zip file",
            "give the path of a .pt file of a run",
        )
    try:
        return _records(stored)
    except MemoryError:
        raise
    except Exception as error:  # zipfile raises many kinds
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: {reason}") from error


def _records(stored: bytes) -> io.BytesIO:
    """The records of a zip file without a digest, in a new zip file: CRC-32 vouches for them, and
    not for the directory, of which torch believes more than Python's `zipfile` looks at.

    Raises an exception of any kind if one is not whole.
    """
    # Without its end, or without the digest there, which only a flip removes.
    if stored[-_ZIP_END_BYTES:][:4] != _ZIP_END or not stored.endswith(b"\0\0"):
        raise zipfile.BadZipFile("its end is missing" if stored else "it is empty")
    copied = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(stored)) as archive, zipfile.ZipFile(copied, "w") as copy:
        names = archive.namelist()
        (count,) = struct.unpack_from("<H", stored, len(stored) - _ZIP_END_BYTES + 10)
        if len(set(names)) < len(names) or min(len(names), 0xFFFF) != count:
            raise zipfile.BadZipFile(f"{len(names)} of its {count} records are found")
        for record in archive.infolist():
            copy.writestr(zipfile.ZipInfo(record.filename), archive.read(record))
    copied.seek(0)
    return copied


@dataclass(frozen=True)
class Trained:
    """The network of a checkpoint, without what only the training itself needs.

    config: the settings of the training; those unknown to its version have their defaults.
    classes: names by label.
    normalisation: what the network expects pixels to be normalised by.
    weights: parameters and buffers by name, on the CPU; BN's statistics are the mean over ranks.
    kind: whether they are the trained ones or their average; None where the file has the former
        alone.
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
    kind: Weights | None = None

    @property
    def said_kind(self) -> str:
        """The kind of weights in words, to follow the name of the file; empty where there is no
        choice."""
        return {None: "", "raw": " (raw weights)", "ema": " (EMA of the weights)"}[self.kind]

    def configured(self, given: Any, names: Sequence[str]) -> Config:
        """The settings, overridden by those of `names` on the parsed command line.

        Raises `ConfigError` if they do not fit together, or if one has no effect.
        """
        config = overrides(given, names, yaml.safe_load(self.config.to_yaml()))
        size, own = config.data.image_size, config.data.val_size
        given_size = "data.image_size" in names and "data.image_size" in given
        require(
            own is None or not given_size,
            f"data.image_size={size} is not the side of the views that {self.path} is validated "
            f"on, which is data.val_size={own}; set that",
        )
        return config

    def build(self, device: torch.device, config: Config | None = None) -> nn.Module:
        """The network with its weights on `device`, in eval mode.

        The settings model.norm and optim.amp of `config` choose the norm backend; None: the
        reference, which runs everywhere. Raises `ValueError` if they cannot run on `device`.
        """
        if config is None:
            reference = dataclasses.replace(self.config.model, norm="reference")
            config = dataclasses.replace(self.config, model=reference)
        norm = choose_backend(config.model.norm, device, config.optim.amp)
        with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced at once
            model = build_network(config.model, len(self.classes), norm)
        model.load_state_dict(self.weights)
        return model.to(device).eval()

    @property
    def digest(self) -> str:
        """Digest of the weights, 16 hex digits, which identifies the network."""
        summary = hashlib.sha256()
        for name, tensor in self.weights.items():
            summary.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return summary.hexdigest()[:16]


def read(path: Path, kind: Weights | None = None) -> Trained:
    """Reads the network in the checkpoint `path`. Raises as `read_verified` and `trained` do."""
    return trained(path, read_verified(path), kind)


def trained(path: Path, content: Mapping[str, Any], kind: Weights | None = None) -> Trained:
    """The network in `content`, which `read_verified` has read from `path`, with its weights of a
    `kind`; None: their average (EMA) if there is one. Raises `ValueError` if it lacks what that
    needs."""
    if missing := [name for name in _OF_A_NETWORK if name not in content]:
        raise ValueError(
            f"checkpoint {path} has no {', '.join(missing)}: it was not written by this program; "
            "give another one"
        )
    average: Any = content.get("ema")
    if kind == "ema" and average is None:
        raise ValueError(
            f"checkpoint {path} has no EMA of the weights, as it was trained with "
            "optim.ema_decay=null; give --weights raw, or leave it out"
        )
    chosen = None if average is None else kind or "ema"
    weights: Mapping[str, Any] = average if chosen == "ema" else content
    return Trained(
        path,
        config_of(yaml.safe_load(content["config"])),
        list(content["classes"]),
        Normalisation.from_state(content["normalisation"]),
        weights["model"],
        content["step"],
        content["world_size"],
        content["fingerprint"],
        content.get("excluded", {"train": [], "val": []}),  # early versions had none
        chosen,
    )


def require_same_run(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compares the facts that make two runs the same one. Raises `ValueError` naming both values
    of each that differs, or that `stored` is of no run."""
    if "weights from" in stored:  # made by pipeline.export, without a training
        raise ValueError(
            f"checkpoint {path} holds weights imported from {stored['weights from']}, so it "
            "resumes no training; give it to pipeline.evaluate or pipeline.predict, or to a new "
            "run as --init"
        )
    there, now = {**later_defaults(), **stored}, {**_given_up(stored, wanted), **wanted}
    differences = {
        name: f"{name}: {_told(there, name)} in the checkpoint, {_told(now, name)} now"
        for name, value in now.items()
        # A rule under which the length is free stored none, and is itself another.
        if there.get(name) != value and not (name in LENGTH and name not in there)
    }
    if differences:
        raise ValueError(
            f"checkpoint {path} belongs to another run ({'; '.join(differences.values())}); set "
            f"these back, or choose another run.name{_why_length(differences, wanted)}"
        )


def _given_up(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of settings that the run of `stored` had at another value and with an effect,
    and that `wanted` does not name, as it does none that came later and has its default."""
    defaults = later_defaults()
    changed = [name for name in stored if name in defaults and name not in wanted]
    if not changed:
        return {}
    idle = idle_settings({**Config().values(), **defaults, **stored})
    return {name: defaults[name] for name in changed if name not in idle}


def _why_length(differences: Mapping[str, str], wanted: Mapping[str, Any]) -> str:
    """Why another length is another run, where it is one of the `differences`."""
    if not differences.keys() & set(LENGTH):
        return ""
    return (
        f"; with schedule.rule={wanted['schedule.rule']} the rate of every step depends on the "
        "length, so that a run cannot be prolonged or shortened once it has begun"
    )


def _told(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return "(not stored)"
    return "null" if facts[name] is None else str(facts[name])
