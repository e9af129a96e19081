"""ImageNet's archives as they come: which images lie where, without unpacking anything.

The training archive is a tar of one tar per class; both levels are read by position, so that any
number of threads works on it at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ConfigError, require
from pipeline.data.index.tar import members
from pipeline.data.index.window import opened
from pipeline.prepare.imagenet.devkit import Devkit, Synset, check_plain_name

_PLAIN, _FOLDER = (b"0", b"\0", b"7"), b"5"
_VAL_NUMBER = re.compile(r"_(\d+)\.\w+$")


class Image(NamedTuple):
    """A file in an archive: its name without a folder, and its bytes there."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Block:
    """The images of one class in one archive.

    files and stored_bytes are known from the start; `images` walks the archive for the rest, in
    bytewise order of names, and raises ConfigError or BadContainer for what is wrong there.
    """

    archive: Path
    wnid: str
    files: int
    stored_bytes: int
    images: Callable[[], Sequence[Image]]


def read_bytes(descriptor: int, image: Image, archive: Path) -> bytes:
    """The image's bytes; ConfigError, with the offset, where the archive ends before."""
    parts, offset, end = [], image.offset, image.offset + image.length
    while offset < end:
        try:
            part = os.pread(descriptor, end - offset, offset)
        except OSError as error:
            raise ConfigError(f"{archive} cannot be read at byte {offset}: {error}") from error
        require(bool(part), f"{archive} ends at byte {offset}, within {image.name}; copy it anew")
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def train_blocks(archive: Path, devkit: Devkit) -> list[Block]:
    """The classes of the training archive, in bytewise order of wnid.

    ConfigError unless it holds one `<wnid>.tar` for each class of the devkit and nothing else.
    """
    inner = {image.name: image for image in _walk(archive, 0, archive.stat().st_size)}
    require(
        len(inner) == len(devkit.synsets),
        f"--train-tar {archive} holds {len(inner)} archives, but the devkit has "
        f"{len(devkit.synsets)} classes; give the archives of one release, copied whole",
    )
    blocks = []
    for synset in devkit.synsets:
        found = inner.get(f"{synset.wnid}.tar")
        if found is None:
            raise ConfigError(
                f"--train-tar {archive} lacks {synset.wnid}.tar, the class of "
                f"{synset.words!r}; give the archives of one release, copied whole"
            )
        blocks.append(_train_block(archive, synset, found))
    return blocks


def _train_block(archive: Path, synset: Synset, inner: Image) -> Block:
    def images() -> Sequence[Image]:
        found = _walk(archive, inner.offset, inner.offset + inner.length)
        require(
            len(found) == synset.train_images,
            f"{inner.name} in --train-tar {archive} holds {len(found)} images, but the devkit "
            f"counts {synset.train_images}; copy the archive anew from its source",
        )
        return found

    return Block(archive, synset.wnid, synset.train_images, inner.length, images)


def val_blocks(archive: Path, devkit: Devkit) -> list[Block]:
    """The validation images by class, in bytewise order of wnid.

    ConfigError unless they are as many as the devkit has labels, numbered from 1 on in their names.
    """
    found = _walk(archive, 0, archive.stat().st_size)
    require(
        len(found) == len(devkit.val_wnids),
        f"--val-tar {archive} holds {len(found)} images, but the devkit has "
        f"{len(devkit.val_wnids)} validation labels; give the archives of one release, copied "
        "whole",
    )
    by_class: dict[str, list[Image]] = {synset.wnid: [] for synset in devkit.synsets}
    for number, image in enumerate(found, 1):
        match = _VAL_NUMBER.search(image.name)
        require(
            match is not None and int(match[1]) == number,
            f"--val-tar {archive} has {image.name} where image {number} is due, so that labels "
            "cannot be told; give the archive as it comes from its source",
        )
        by_class[devkit.val_wnids[number - 1]].append(image)
    return [_val_block(archive, wnid, images) for wnid, images in by_class.items() if images]


def _val_block(archive: Path, wnid: str, images: list[Image]) -> Block:
    stored = sum(image.length for image in images)
    return Block(archive, wnid, len(images), stored, lambda: images)


def _walk(archive: Path, begin: int, end: int) -> list[Image]:
    """The files of the tar between two offsets, in bytewise order of names; folders are passed.

    ConfigError for a name that is not plain (with a folder, `..` or absolute), stands twice, or
    belongs to no plain file.
    """
    found: dict[bytes, Image] = {}
    with opened(archive) as window:
        for member in members(window, begin, end):
            if member.kind == _FOLDER:
                continue
            name = os.fsdecode(member.path)
            where = f"{archive}: at byte {member.header}"
            require(member.kind in _PLAIN, f"{where} {name!r} is a link or another special file")
            try:
                check_plain_name(name)
            except ValueError as error:
                raise ConfigError(f"{where} {error}: refused, nothing leaves its folder") from error
            require(member.path not in found, f"{where} {name!r} comes a second time")
            found[member.path] = Image(name, member.offset, member.length)
    return [found[name] for name in sorted(found)]
