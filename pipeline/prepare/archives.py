"""Locates the images in ImageNet's original archives, without unpacking anything.

The training archive is a tar of one tar per class; both levels are read by position, so that any
number of threads works on it at once.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.config import ConfigError, require
from pipeline.data.index.tar_members import FILES, members
from pipeline.data.index.window import opened
from pipeline.prepare.devkit import Devkit, Synset, is_plain
from pipeline.system.words import printable

_FOLDER = b"5"
_OF_ONE_RELEASE = "give the archives of one release, copied whole"
_VAL_NUMBER = re.compile(r"_([0-9]{1,9})\.\w+$")


class Image(NamedTuple):
    """A file in an archive: its name without a folder, and its bytes there."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Block:
    """Images of one class in one archive.

    files and stored_bytes are known from the start, of a part about; `images` walks the archive for
    the rest, in bytewise order of names, and raises `ValueError` for what is wrong there.
    """

    archive: Path
    wnid: str
    files: int
    stored_bytes: int
    images: Callable[[], Sequence[Image]]

    def parts(self, count: int) -> list[Block]:
        """Splits the block into `count` about equal ones, in order."""

        def images(part: int) -> Sequence[Image]:
            found = self.images()
            first, last = (len(found) * k // count for k in (part, part + 1))
            return found[first:last]

        files, stored = self.files // count, self.stored_bytes // count
        return [
            Block(self.archive, self.wnid, files, stored, functools.partial(images, part))
            for part in range(count)
        ]


def read_image(archive: BinaryIO, image: Image) -> bytes:
    """The image's bytes; ConfigError, with the offset, where the archive ends before."""
    try:
        archive.seek(image.offset)
        content = archive.read(image.length)
    except OSError as error:
        raise ConfigError(
            f"{archive.name} cannot be read at byte {image.offset}: {error}"
        ) from error
    end = image.offset + len(content)
    whole = len(content) == image.length
    require(
        whole, f"{archive.name} ends at byte {end}, within {printable(image.name)}; copy it again"
    )
    return content


def train_blocks(archive: Path, devkit: Devkit) -> list[Block]:
    """The classes of the training archive, in bytewise order of wnid.

    ConfigError unless it holds one `<wnid>.tar` for each class of the devkit and nothing else.
    """
    inner = {image.name: image for image in _walk(archive, 0, archive.stat().st_size)}
    require(
        len(inner) == len(devkit.synsets),
        f"--train-tar {archive} holds {len(inner)} archives, but the devkit has "
        f"{len(devkit.synsets)} classes; {_OF_ONE_RELEASE}",
    )
    for synset in devkit.synsets:
        require(
            f"{synset.wnid}.tar" in inner,
            f"--train-tar {archive} has no {synset.wnid}.tar, the class of {synset.words!r}; "
            f"{_OF_ONE_RELEASE}",
        )
    return [_train_block(archive, one, inner[f"{one.wnid}.tar"]) for one in devkit.synsets]


def _train_block(archive: Path, synset: Synset, inner: Image) -> Block:
    def images() -> Sequence[Image]:
        found = _walk(archive, inner.offset, inner.offset + inner.length)
        require(
            len(found) == synset.train_images,
            f"{printable(inner.name)} in --train-tar {archive} holds {len(found)} images, but the "
            f"devkit counts {synset.train_images}; copy the archive again from its source",
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
        f"{len(devkit.val_wnids)} validation labels; {_OF_ONE_RELEASE}",
    )
    by_class: dict[str, list[Image]] = {synset.wnid: [] for synset in devkit.synsets}
    for number, image in enumerate(found, 1):
        match = _VAL_NUMBER.search(image.name)
        require(
            match is not None and int(match[1]) == number,
            f"--val-tar {archive} has {printable(image.name)} where image {number} is due, so that "
            "labels cannot be known; give the archive as it comes from its source",
        )
        by_class[devkit.val_wnids[number - 1]].append(image)
    return [
        Block(archive, wnid, len(images), sum(image.length for image in images), images.copy)
        for wnid, images in by_class.items()
        if images
    ]


def _walk(archive: Path, begin: int, end: int) -> list[Image]:
    """The files of the tar between two offsets, in bytewise order of names, without folders.

    ConfigError for a name that is not plain (with a folder, `..` or absolute), occurs twice, or
    belongs to no plain file.
    """
    found: dict[bytes, Image] = {}
    with opened(archive) as window:
        for member in members(window, begin, end):
            if member.kind == _FOLDER:
                continue
            name = os.fsdecode(member.path)
            where = f"{archive}: at byte {member.header}"
            require(member.kind in FILES, f"{where} {name!r} is a link or another special file")
            require(
                is_plain(name),
                f"{where} {name!r} is no plain name of a file or folder: refused, nothing leaves "
                "its folder",
            )
            require(member.path not in found, f"{where} {name!r} comes a second time")
            found[member.path] = Image(name, member.offset, member.length)
    return [found[name] for name in sorted(found)]
