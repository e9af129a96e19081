"""`prepare imagenet`: turns ImageNet-1k's three archives into a folder that training can use.

A split is written to `<out>/.trainyard/<split>`, as class folders or as packed shards, and moved to
its place when complete, so training never sees half of one.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.classes import WORDS_FILE
from pipeline.prepare.archives import Block, read_image, train_blocks, val_blocks
from pipeline.prepare.devkit import read_devkit
from pipeline.prepare.files import (
    Progress,
    in_threads,
    make_folder,
    on_disk,
    only_writer,
    read_mark,
    require_room,
    require_same,
    whole_file,
    write_json,
    writing,
)
from pipeline.prepare.options import ImagenetOptions
from pipeline.system.console import say

_MB = 10**6


def run(options: ImagenetOptions) -> None:
    """Writes what is missing of train, val and synset_words.txt. `ValueError`, with
    the archive, the place in it and both numbers of a difference."""
    devkit = read_devkit(options.devkit)
    blocks = {
        "val": val_blocks(options.val_tar, devkit),
        "train": train_blocks(options.train_tar, devkit),
    }
    with only_writer(options.out) as hidden:
        _check_mark(options, hidden / "imagenet.json", len(devkit.synsets))
        left = {
            split: _tasks(options, hidden / split, found)
            for split, found in blocks.items()
            if not (options.out / split).exists()
        }
        tasks = [task for of_split in left.values() for task in of_split]
        require_room(options.out, sum(task.needed_bytes for task in tasks))
        files, stored = sum(task.files for task in tasks), sum(task.stored_bytes for task in tasks)
        with Progress(f"writing {options.out}", files, stored) as progress:

            def work(task: Task) -> None:
                task.write(hidden)
                progress.add(task.files, task.stored_bytes)

            for split, of_split in left.items():
                make_folder(hidden / split)
                in_threads(work, of_split, options.workers)
                with writing(options.out / split, resumes=True):
                    os.sync()  # the name must not outlive a power cut that the content does not
                    os.rename(hidden / split, options.out / split)
        with whole_file(options.out / WORDS_FILE, hidden) as partial:
            lines = [f"{synset.wnid} {synset.words}\n" for synset in devkit.synsets]
            partial.write_text("".join(lines), encoding="utf-8")
    train, val = (sum(block.files for block in blocks[split]) for split in ("train", "val"))
    state = "written to" if left else "are already in"
    what = f"{train} train and {val} val images of {len(devkit.synsets)} classes"
    say(f"{what} {state} {options.out}")


def _check_mark(options: ImagenetOptions, mark: Path, classes: int) -> None:
    """Raises ConfigError, with both values, unless a second call means the same set."""
    known = read_mark("--out", options.out, mark, "a data set that was begun here")
    meant = {
        "layout": options.layout,
        "shard_mb": options.shard_mb if options.layout == "shards" else None,
        "train_tar_bytes": options.train_tar.stat().st_size,
        "val_tar_bytes": options.val_tar.stat().st_size,
        "classes": classes,
    }
    if known:
        require_same(
            f"--out {options.out} was begun with", known, meant,
            "call it as before, remove the folder, or give another",
        )  # fmt: skip
    else:
        write_json(mark, meant)


@dataclass(frozen=True)
class Task:
    """The unit that one thread writes: the folder of one class, or a shard (a tar file)."""

    place: Path
    blocks: Sequence[Block]
    is_shard: bool

    @property
    def files(self) -> int:
        """Images, about."""
        return sum(block.files for block in self.blocks)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the archive, about."""
        return sum(block.stored_bytes for block in self.blocks)

    @property
    def needed_bytes(self) -> int:
        """Disk space that it still takes, at most: an earlier call may have begun a folder."""
        if self.is_shard:
            return on_disk(self.stored_bytes + 1024 * self.files)
        taken = sum(on_disk(length) for length in _lengths(self.place).values())
        return max(0, self.stored_bytes + on_disk(4096) * self.files - taken)

    def write(self, scratch: Path) -> None:
        """Writes what is missing of it."""
        if self.is_shard:
            _write_shard(self.place, self.blocks, scratch)
        else:
            _write_folder(self.place, self.blocks[0], scratch)


def _tasks(options: ImagenetOptions, folder: Path, blocks: Sequence[Block]) -> list[Task]:
    """The units still to write: all class folders, which are checked as they are written, or the
    missing shards, as one gets its name only when complete."""
    if options.layout == "folders":
        return [Task(folder / block.wnid, [block], False) for block in blocks]
    shards = enumerate(_shards(blocks, options.shard_mb * _MB))
    tasks = [Task(folder / f"shard-{number:06}.tar", inside, True) for number, inside in shards]
    return [task for task in tasks if not task.place.exists()]


def _shards(blocks: Sequence[Block], shard_bytes: int) -> list[list[Block]]:
    """The content of each shard of about `shard_bytes`: neighbouring classes together, a class much
    larger than that in parts. Depends only on the archives' headers, so a restart plans the
    same."""
    shards: list[list[Block]] = []
    filled = shard_bytes
    for block in blocks:
        parts = block.parts(max(1, round(block.stored_bytes / shard_bytes)))
        if len(parts) == 1 and filled + block.stored_bytes <= shard_bytes:
            shards[-1].append(block)
            filled += block.stored_bytes
        else:
            shards += [[part] for part in parts]
            filled = block.stored_bytes if len(parts) == 1 else shard_bytes
    return shards


def _lengths(folder: Path) -> dict[str, int]:
    """Bytes of each file in a folder, by name; none where there is no folder."""
    if not folder.exists():
        return {}
    with writing(folder), os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def _write_folder(folder: Path, block: Block, scratch: Path) -> None:
    make_folder(folder)
    there = _lengths(folder)
    with open(block.archive, "rb") as archive:
        for image in block.images():
            if there.get(image.name) != image.length:
                content = read_image(archive, image)
                # They are more than a million: one sync at the end covers all of them.
                with whole_file(folder / image.name, scratch, durable=False) as partial:
                    partial.write_bytes(content)


def _write_shard(path: Path, blocks: Sequence[Block], scratch: Path) -> None:
    """A plain tar without times or owners: the same archives give the same bytes."""
    with (
        whole_file(path, scratch) as partial,
        tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as shard,  # names of any bytes
    ):
        for block in blocks:
            with open(block.archive, "rb") as archive:
                for image in block.images():
                    member = tarfile.TarInfo(f"{block.wnid}/{image.name}")
                    member.size = image.length
                    shard.addfile(member, io.BytesIO(read_image(archive, image)))
                    shard.members.clear()  # type: ignore[attr-defined]
