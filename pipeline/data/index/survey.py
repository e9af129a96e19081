"""Finds what `<root>/<split>/` holds, at the cost of one stat per class folder or container.

Either class folders (`<class>/<file>`), or containers of one kind: tar archives (`*.tar`),
TFRecord files (`*-00000-of-01024`, `*.tfrecord*`), or RecordIO files (`*.rec`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.data.index.passed import HIDDEN, LOOSE, SPECIAL, TO_NOWHERE, Passed
from pipeline.data.index.window import IMAGE_EXTENSIONS, RECORDIO_LIST, is_image, unreadable
from pipeline.system.console import counted
from pipeline.system.words import shell_word

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)
Kind = Literal["folders", "tar", "tfrecord", "recordio"]

CLASSES_FILE = "classes.txt"
"""Names the classes, one a line in the order of their numbers, of containers that number them."""

_CONTAINERS: dict[Kind, re.Pattern[bytes]] = {
    "tar": re.compile(rb"\.tar$", re.I),
    "tfrecord": re.compile(rb"\.tfrec(ord)?s?(-\d+-of-\d+)?(\.gz)?$|-\d{5}-of-\d{5}$", re.I),
    "recordio": re.compile(rb"\.rec$", re.I),
}
_COMPRESSED_TAR = re.compile(rb"\.(tar\.(gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz|tzst)$", re.I)
_PLURAL = {
    "folders": "class folders",
    "tar": "tar archives",
    "tfrecord": "TFRecord files",
    "recordio": "RecordIO files",
}
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Tree:
    """One split, before any image is looked at.

    kind: what its images lie in. sources: names of the class folders or containers, in bytewise
    order. class_lists: files that name numbered classes, the split's own first. stamp: hex digits
    that change when an entry is added to or removed from a class folder, or a container changes in
    size or time. changed_sec: when that last happened, in seconds since 1970. size_bytes: of all
    containers. passed: what lies next to the sources and is not used.
    """

    directory: Path
    kind: Kind
    sources: list[str]
    class_lists: list[Path]
    stamp: str
    changed_sec: float
    size_bytes: int
    passed: Passed

    @property
    def classes(self) -> list[str]:
        """The class folders; empty for containers, whose classes only a walk finds."""
        return self.sources if self.kind == "folders" else []

    @property
    def source_noun(self) -> str:
        """The sources' noun in a message: "class folders", "tar archives" ..."""
        return _PLURAL[self.kind]


def survey(root: Path, split: Split) -> Tree:
    """Return what `<root>/<split>` holds; dotfiles are passed over, symbolic links followed.

    ValueError, with the fix, if the root or the split is missing or cannot be read, or if it holds
    neither class folders nor containers, both, containers of two kinds, or compressed archives.
    """
    directory = root / split
    _check_directories(root, directory, split)
    try:
        with os.scandir(os.fsencode(directory)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
            visible = [entry for entry in found if not entry.name.startswith(b".")]
            folders = [entry.name for entry in visible if entry.is_dir()]
        files = sorted({entry.name for entry in visible} - set(folders))
        passed = _beside(found)
        kind, sources = _sources(directory, folders, files, passed)
        return _tree(root, directory, kind, sources, files, len(visible), passed)
    except OSError as error:
        place = os.fsdecode(error.filename or directory)
        raise unreadable(place, error, "set data.root to a copy") from error


def no_images(directory: Path, passed: Passed) -> str:
    """Return the message for a split without a single image, which names what lies there."""
    instead = f", only {passed.words()}" if passed else ""
    return (
        f"{directory} holds no images ({' '.join(IMAGE_EXTENSIONS)}){instead}; lay them out as "
        f"{directory}/<class>/*.JPEG, put tar, TFRecord or .rec files there, or set data.root"
    )


def name_few(names: Sequence[str]) -> str:
    """Return the first few names and how many more there are, for a message."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _check_directories(root: Path, directory: Path, split: Split) -> None:
    # os.path, as Path.is_dir raises below a folder that must not be looked into.
    if not os.path.isdir(root):
        raise ValueError(
            f"the data directory {root} does not exist; make the demo set with python -m "
            "pipeline.prepare demo, one of your own images with python -m pipeline.prepare split, "
            "or lay ImageNet out as <root>/train/<wnid>/*.JPEG and <root>/val/<wnid>/*.JPEG, and "
            "set data.root"
        )
    if not os.path.isdir(directory):
        other = other_name(root, split) or _not_split(root)
        if other is not None:
            raise ValueError(other)
        raise ValueError(
            f"the data directory {root} has no folder {split}; lay the images out as "
            f"{directory}/<class>/*.JPEG, or set data.root to the folder that holds train and val"
        )


def _beside(entries: Sequence[os.DirEntry[bytes]]) -> Passed:
    """Count what is, by its name, neither a folder, a container nor a file that belongs to one."""
    passed, names = Passed(), {entry.name for entry in entries}
    for entry in entries:
        name = entry.name
        if name.startswith(b"."):
            passed.add(HIDDEN, name)
        elif entry.is_dir() or is_container(name) or _belongs(name, names):
            continue
        elif entry.is_symlink() and not os.path.exists(entry.path):
            passed.add(TO_NOWHERE, name)
        elif not entry.is_file():
            passed.add(SPECIAL, name)
        elif is_image(name):
            passed.add(LOOSE, name)
        else:
            passed.add_file(name, name)
    return passed


def _belongs(name: bytes, names: Collection[bytes]) -> bool:
    """Return whether a file names classes, or is the index or list of one of the containers."""
    stem, suffix = os.path.splitext(name)
    own = {b".idx": (stem, stem + b".rec"), RECORDIO_LIST.encode(): (stem + b".rec",)}
    return name == CLASSES_FILE.encode() or any(one in names for one in own.get(suffix, ()))


def is_container(name: bytes) -> bool:
    return any(pattern.search(name) for pattern in _CONTAINERS.values())


_OTHER_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("training", "trn"),
    "val": ("validation", "valid", "validate", "dev", "eval", "test", "testing"),
}
"""What other programs call a split, the likeliest first."""


def other_name(root: Path, split: Split) -> str | None:
    """Return the message for a folder of `root` that looks like the split, which is missing, under
    another name; None if there is none.
    """
    try:
        folders = {name.lower(): name for name in os.listdir(root) if os.path.isdir(root / name)}
    except OSError:
        return None
    other = next((folders[n] for n in (split, *_OTHER_NAMES[split]) if n in folders), None)
    if other is None:
        return None
    command = " ".join(map(shell_word, ("ln", "-s", other, str(root / split))))
    return (
        f"the data directory {root} has no folder {split}, and there is a folder {other}; "
        f"rename it to {split}, or link it: {command}"
    )


def _not_split(root: Path) -> str | None:
    """Return the message for a folder of class folders that has neither train nor val, or for one
    of these two given in place of the folder around both; None if it is neither.
    """
    around = root.resolve().parent
    if root.name in SPLITS and all(os.path.isdir(around / split) for split in SPLITS):
        return (
            f"the data directory {root} is a half of a data set; set data.root={root.parent}, "
            "which holds train and val"
        )
    if any(os.path.isdir(root / split) for split in SPLITS):
        return None
    try:
        folders = [f for f in os.scandir(os.fsencode(root)) if f.is_dir()]
        classes = [f for f in folders if any(map(is_image, os.listdir(f.path)))]
    except OSError:
        return None
    if not classes:
        return None
    words = ("--from", str(root), "--to", f"{root}-split", "--val", "0.2")
    command = " ".join(map(shell_word, ("python", "-m", "pipeline.prepare", "split", *words)))
    return (
        f"the data directory {root} holds {counted(len(classes), 'class folder')} and no train and "
        f"val; make them with {command}, and set data.root={shell_word(f'{root}-split')}"
    )


def _sources(
    directory: Path, folders: list[bytes], files: list[bytes], passed: Passed
) -> tuple[Kind, list[bytes]]:
    """Return the one kind of source that is present, and the sources' names."""
    compressed = [os.fsdecode(name) for name in files if _COMPRESSED_TAR.search(name)]
    if compressed:
        raise ValueError(
            f"{directory} holds compressed archives, which cannot be read by byte range: "
            f"{name_few(compressed)}; uncompress them (gunzip, unxz ...), images do not get "
            f"smaller by it"
        )
    found: dict[Kind, list[bytes]] = {"folders": folders} if folders else {}
    for kind, pattern in _CONTAINERS.items():
        names = [name for name in files if pattern.search(name)]
        found |= {kind: names} if names else {}
    if len(found) > 1:
        kinds = " and ".join(
            f"{len(names)} {_PLURAL[kind]} ({name_few([os.fsdecode(name) for name in names])})"
            for kind, names in found.items()
        )
        raise ValueError(
            f"{directory} holds {kinds}, of which only one kind can be the data set; move the "
            f"others to another folder"
        )
    if found:
        return next(iter(found.items()))
    loose = sum(map(is_image, files))
    if loose:
        raise ValueError(
            f"{directory} holds {loose} images but no class folders, so their labels cannot "
            f"be known; move each into {directory}/<class>/, the folders named as in training"
        )
    raise ValueError(no_images(directory, passed))


def _tree(
    root: Path,
    directory: Path,
    kind: Kind,
    sources: Sequence[bytes],
    files: Sequence[bytes],
    visible: int,
    passed: Passed,
) -> Tree:
    """Stat the directory and each source."""
    parent = os.fsencode(directory)
    of_sources = [os.stat(os.path.join(parent, name)) for name in sources]
    lists = []
    if kind != "folders":
        places = (directory / CLASSES_FILE, root / CLASSES_FILE)
        lists = [place for place in places if os.path.lexists(place)]
    states = [os.stat(parent), *of_sources]
    state: tuple[object, ...] = (visible, list(sources), [one.st_mtime_ns for one in states])
    if kind != "folders":
        # A link to nothing is an error only where a list is needed.
        states += [os.stat(one) if os.path.exists(one) else os.lstat(one) for one in lists]
        if kind == "recordio":
            named = [os.path.splitext(name)[0] + RECORDIO_LIST.encode() for name in sources]
            states += [os.stat(os.path.join(parent, name)) for name in named if name in files]
        # Not the directory's own time: other entries that come and go there are not data.
        state = (kind, list(sources), [(one.st_mtime_ns, one.st_size) for one in states[1:]])
    return Tree(
        directory,
        kind,
        [os.fsdecode(name) for name in sources],
        lists,
        hashlib.sha256(repr(state).encode()).hexdigest(),
        max(one.st_mtime_ns for one in states) / 1e9,
        sum(one.st_size for one in of_sources),
        passed,
    )
