"""ImageNet's development kit: what the ids of its classes and of the validation labels mean.

Its ids are not the labels of training: there, labels follow the sorted names of the class folders
(wnids); ILSVRC2012_ID follows an order of its own.
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ConfigError, require
from pipeline.prepare.imagenet.mat5 import read_variables

_META = "data/meta.mat"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Synset:
    """One class: its name in WordNet, its words, and how many training images it has."""

    wnid: str
    words: str
    train_images: int


@dataclass(frozen=True)
class Devkit:
    """The classes that images have, in bytewise order of wnid, as training's labels are, and the
    wnid of each validation image: number i of the archive's names at i - 1."""

    synsets: list[Synset]
    val_wnids: list[str]


def read_devkit(path: Path) -> Devkit:
    """Read ILSVRC2012_devkit_t12.tar.gz; ConfigError for anything else, naming what it lacks."""
    files = _unpack(path)
    for name in (_META, _TRUTH):
        require(
            name in files,
            f"--devkit {path} is no ImageNet development kit: it lacks {name}; give "
            "ILSVRC2012_devkit_t12.tar.gz",
        )
    try:
        by_id = _synsets(read_variables(files[_META]))
    except ValueError as error:
        raise ConfigError(f"{_META} in --devkit {path} cannot be used: {error}") from error
    truth = files[_TRUTH].decode("ascii", errors="replace").split()
    wrong = [f"line {i}: {line}" for i, line in enumerate(truth, 1) if _number(line) not in by_id]
    require(
        not wrong,
        f"{_TRUTH} in --devkit {path} names no class of meta.mat at {', '.join(wrong[:3])}; "
        "copy the devkit anew from its source",
    )
    synsets = sorted(by_id.values(), key=lambda synset: synset.wnid)
    return Devkit(synsets, [by_id[int(line)].wnid for line in truth])


def _number(line: str) -> int | None:
    return int(line) if line.isdecimal() else None


def _unpack(path: Path) -> dict[str, bytes]:
    """The two files of the kit, by the last two parts of their names."""
    found = {}
    try:
        with tarfile.open(path) as kit:
            for member in kit:
                name = "/".join(member.name.split("/")[-2:])
                if name in (_META, _TRUTH) and member.isfile() and member.size < _MAX_BYTES:
                    reader = kit.extractfile(member)
                    assert reader is not None, "a plain file has content"
                    found[name] = reader.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ConfigError(
            f"--devkit {path} cannot be read as a .tar.gz archive ({error}); copy it anew from its "
            "source"
        ) from error
    return found


def _synsets(variables: dict[str, Any]) -> dict[int, Synset]:
    """The classes without children, which are those that have images, by ILSVRC2012_ID."""
    rows = variables.get("synsets")
    if not isinstance(rows, list) or not rows:
        raise ValueError("it holds no structure named synsets")
    needed = ("ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")
    missing = [name for name in needed if name not in rows[0]]
    if missing:
        raise ValueError(f"its synsets lack {', '.join(missing)}")
    found: dict[int, Synset] = {}
    for row in rows:
        if _scalar(row, "num_children") > 0:
            continue
        identity = _scalar(row, "ILSVRC2012_ID")
        if identity in found:
            raise ValueError(f"ILSVRC2012_ID {identity} stands twice")
        wnid, words = row["WNID"], row["words"]
        if not isinstance(wnid, str) or not isinstance(words, str):
            raise ValueError(f"WNID or words of ILSVRC2012_ID {identity} is no text")
        found[identity] = Synset(wnid, words, _scalar(row, "num_train_images"))
    names = {synset.wnid for synset in found.values()}
    if len(names) != len(found):
        raise ValueError(f"{len(found)} classes share {len(names)} wnids")
    for name in names:
        check_plain_name(name)
    return found


def check_plain_name(name: str) -> None:
    """Raises ValueError for a name that would not lie directly in the folder it is written to."""
    if not name or "/" in name or "\0" in name or name.startswith("."):
        raise ValueError(f"{name!r} is no plain name of a file or folder")


def _scalar(row: dict[str, Any], field: str) -> int:
    value = np.asarray(row[field])
    if value.size != 1 or value.dtype.kind != "f" or value.item() != int(value.item()):
        raise ValueError(f"{field} is {row[field]!r}, not one whole number")
    return int(value.item())
