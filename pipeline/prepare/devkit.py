"""ImageNet's development kit: the ids of its classes and of the validation labels.

Its ids are not the labels of training: there, labels follow the sorted names of the class folders
(wnids); ILSVRC2012_ID follows an order of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ConfigError, require
from pipeline.data.index.labels import shown
from pipeline.data.index.unpacked import unpacked
from pipeline.data.index.window import BadContainer
from pipeline.prepare.mat5 import read_variables

_META = "data/meta.mat"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_MOST_BYTES = 1 << 28  # of the kit unpacked, which has 2 MB
_MOST_DIGITS = 9


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
    """Reads ILSVRC2012_devkit_t12.tar.gz; ConfigError for anything else, naming what is missing."""
    files = _unpack(path)
    for name in (_META, _TRUTH):
        require(
            name in files,
            f"--devkit {path} is no ImageNet development kit: it has no {name}; give "
            "ILSVRC2012_devkit_t12.tar.gz",
        )
    try:
        by_id = _synsets(read_variables(files[_META]))
    except ValueError as error:
        raise ConfigError(f"{_META} in --devkit {path} cannot be used: {error}") from error
    truth = files[_TRUTH].decode("ascii", errors="replace").split()
    wrong = [
        f"line {number}: {line[:40]}"
        for number, line in enumerate(truth, 1)
        if not (line.isdecimal() and len(line) <= _MOST_DIGITS and int(line) in by_id)
    ]
    require(
        not wrong,
        f"{_TRUTH} in --devkit {path} names no class of meta.mat at {', '.join(wrong[:3])}; "
        "copy the devkit again from its source",
    )
    synsets = sorted(by_id.values(), key=lambda synset: synset.wnid)
    return Devkit(synsets, [by_id[int(line)].wnid for line in truth])


def _unpack(path: Path) -> dict[str, bytes]:
    """The two files of the kit, by the last two parts of their names."""
    found: dict[str, bytes] = {}
    try:
        for member, content in unpacked(
            path, lambda name: _last(name) in (_META, _TRUTH), _MOST_BYTES
        ):
            require(
                found.setdefault(_last(member), content) == content,
                f"--devkit {path} has {_last(member)} twice, with other content; give the archive "
                "as it comes from its source",
            )
    except (BadContainer, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        raise ConfigError(
            f"--devkit {path} cannot be read as a .tar.gz archive ({reason}); copy it again from "
            "its source"
        ) from error
    return found


def _last(name: str) -> str:
    return "/".join(name.split("/")[-2:])


def _synsets(variables: dict[str, Any]) -> dict[int, Synset]:
    """The classes without children, which are those that have images, by ILSVRC2012_ID."""
    rows: Any = variables.get("synsets")
    require(isinstance(rows, list) and bool(rows), "it holds no structure named synsets")
    needed = ("ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")
    missing = [name for name in needed if name not in rows[0]]
    require(not missing, f"its synsets have no {', '.join(missing)}")
    found: dict[int, Synset] = {}
    for row in rows:
        if _scalar(row, "num_children") > 0:
            continue
        identity, wnid, words = _scalar(row, "ILSVRC2012_ID"), row["WNID"], row["words"]
        require(identity not in found, f"ILSVRC2012_ID {identity} occurs twice")
        texts = isinstance(wnid, str) and isinstance(words, str)
        require(texts, f"WNID or words of ILSVRC2012_ID {identity} is no text")
        require(is_plain(wnid), f"{wnid!r} is no plain name of a file or folder")
        found[identity] = Synset(wnid, words, _scalar(row, "num_train_images"))
    names = {synset.wnid for synset in found.values()}
    require(len(names) == len(found), f"{len(found)} classes share {len(names)} wnids")
    return found


def is_plain(name: str) -> bool:
    """Whether a file or folder of that name lies directly in the folder it is written to."""
    return bool(name) and "/" not in name and "\0" not in name and not name.startswith(".")


def _scalar(row: dict[str, Any], field: str) -> int:
    value = np.asarray(row[field])
    whole = value.size == 1 and value.dtype.kind == "f" and value.item().is_integer()
    require(whole, f"{field} is {shown(row[field])}, not one whole number")
    return int(value.item())
