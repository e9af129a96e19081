"""Writes the images of archives as class folders or as packed shards, and goes on after a kill."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.prepare.files import on_disk, whole_file, write_error
from pipeline.prepare.imagenet.archives import Block, Image, read_bytes

Done = Callable[[int, int], None]
"""Told the files and bytes that one more task has done."""


@dataclass(frozen=True)
class Share:
    """Part `part` of `parts` about equal ones of a block's images, in order."""

    block: Block
    part: int = 0
    parts: int = 1

    def images(self) -> Sequence[Image]:
        """The share's images; walks the archive."""
        found = self.block.images()
        first, last = (len(found) * k // self.parts for k in (self.part, self.part + 1))
        return found[first:last]

    @property
    def files(self) -> int:
        """How many images, as far as known before the walk."""
        return self.block.files // self.parts

    @property
    def stored_bytes(self) -> int:
        """About how many bytes."""
        return self.block.stored_bytes // self.parts


@dataclass(frozen=True)
class Task:
    """What one thread writes at a time: a class folder, or a shard (a tar file)."""

    place: Path
    shares: tuple[Share, ...]
    is_shard: bool

    @property
    def files(self) -> int:
        """Images, about."""
        return sum(share.files for share in self.shares)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the archive, about."""
        return sum(share.stored_bytes for share in self.shares)

    @property
    def needed_bytes(self) -> int:
        """Room on the disk, at most."""
        if self.is_shard:
            return on_disk(self.stored_bytes + 1024 * self.files)
        return self.stored_bytes + on_disk(4096) * self.files

    def write(self, scratch: Path) -> None:
        """Writes what is missing of it."""
        if self.is_shard:
            _write_shard(self.place, self.shares, scratch)
        else:
            _write_folder(self.place, self.shares[0].block, scratch)


def folder_tasks(directory: Path, blocks: Sequence[Block]) -> list[Task]:
    """One task for each class folder below `directory`."""
    return [Task(directory / block.wnid, (Share(block),), False) for block in blocks]


def shard_tasks(directory: Path, blocks: Sequence[Block], shard_bytes: int) -> list[Task]:
    """One task for each shard of about `shard_bytes`: neighbouring classes together, a class much
    larger than that in parts. Depends on the archives' headers only, so a restart plans alike."""
    groups: list[list[Share]] = []
    filled = shard_bytes
    for block in blocks:
        parts = max(1, round(block.stored_bytes / shard_bytes))
        if parts > 1:
            groups += [[Share(block, part, parts)] for part in range(parts)]
            filled = shard_bytes
        elif filled + block.stored_bytes > shard_bytes:
            groups.append([Share(block)])
            filled = block.stored_bytes
        else:
            groups[-1].append(Share(block))
            filled += block.stored_bytes
    return [
        Task(directory / f"shard-{number:06}.tar", tuple(shares), True)
        for number, shares in enumerate(groups)
    ]


def is_complete(task: Task) -> bool:
    """Whether an earlier call finished the task, as far as can be seen without walking archives.

    A shard has its name only when whole; a folder is looked through by `Task.write`.
    """
    return task.is_shard and task.place.exists()


def room_taken(task: Task) -> int:
    """Bytes on disk that an earlier call's files of this task take already."""
    try:
        with os.scandir(task.place) as entries:
            return sum(on_disk(entry.stat().st_size) for entry in entries)
    except OSError:
        return 0


def _write_folder(folder: Path, block: Block, scratch: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with os.scandir(folder) as entries:
            there = {entry.name: entry.stat().st_size for entry in entries}
    except OSError as error:
        raise write_error(folder, error) from error
    with _reading(block.archive) as descriptor:
        for image in block.images():
            if there.get(image.name) == image.length:
                continue
            content = read_bytes(descriptor, image, block.archive)
            # They are more than a million: one sync at the end is for all of them.
            with whole_file(folder / image.name, scratch, durable=False) as partial:
                partial.write_bytes(content)


def _write_shard(path: Path, shares: Sequence[Share], scratch: Path) -> None:
    """Plain tar without times or owners: the same archives give the same bytes."""
    with (
        whole_file(path, scratch) as partial,
        tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as shard,  # names of any bytes
    ):
        for share in shares:
            with _reading(share.block.archive) as descriptor:
                for image in share.images():
                    content = read_bytes(descriptor, image, share.block.archive)
                    member = tarfile.TarInfo(f"{share.block.wnid}/{image.name}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
                    shard.members.clear()  # type: ignore[attr-defined]


@contextmanager
def _reading(archive: Path) -> Iterator[int]:
    # One for each task: the kernel reads ahead for each open file apart.
    descriptor = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
