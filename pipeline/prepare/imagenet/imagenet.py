"""`prepare imagenet`: ImageNet-1k from its three archives to a folder that training can use.

A split grows in `<out>/.trainyard/<split>` and takes its place when complete, so training never
meets half of one.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.data.classes import WORDS_FILE
from pipeline.prepare.files import (
    in_threads,
    only_writer,
    read_json,
    require_own,
    require_room,
    whole_file,
    write_error,
    write_json,
)
from pipeline.prepare.imagenet.archives import Block, train_blocks, val_blocks
from pipeline.prepare.imagenet.devkit import Devkit, read_devkit
from pipeline.prepare.imagenet.layout import (
    Task,
    folder_tasks,
    is_complete,
    room_taken,
    shard_tasks,
)
from pipeline.prepare.options import ImagenetOptions
from pipeline.prepare.progress import Progress

_MARK = "imagenet.json"
_MB = 10**6


def run(options: ImagenetOptions) -> None:
    """Writes what is missing of train, val and synset_words.txt. ConfigError or BadContainer, with
    the archive, the place in it and both numbers of a difference."""
    devkit = read_devkit(options.devkit)
    blocks = {
        "val": val_blocks(options.val_tar, devkit),
        "train": train_blocks(options.train_tar, devkit),
    }
    with only_writer(options.out) as hidden:
        _check_mark(options, hidden, devkit)
        missing = [split for split in blocks if not (options.out / split).exists()]
        left = {
            split: [
                task
                for task in _tasks(options, hidden / split, blocks[split])
                if not is_complete(task)
            ]
            for split in missing
        }
        every = [task for tasks in left.values() for task in tasks]
        require_room(
            options.out, sum(max(0, task.needed_bytes - room_taken(task)) for task in every)
        )
        files, stored = sum(task.files for task in every), sum(task.stored_bytes for task in every)
        with Progress(f"writing {options.out}", files, stored) as progress:

            def work(task: Task) -> None:
                task.write(hidden)
                progress.add(task.files, task.stored_bytes)

            for split in missing:
                _make(hidden / split)
                in_threads(work, left[split], options.workers)
                _take_place(hidden / split, options.out / split)
        _write_words(options.out / WORDS_FILE, devkit, hidden)
    train, val = (sum(block.files for block in blocks[split]) for split in ("train", "val"))
    state = "written to" if missing else "are already in"
    print(f"{train} train and {val} val images of {len(devkit.synsets)} classes {state} "
          f"{options.out}")  # fmt: skip


def _tasks(options: ImagenetOptions, directory: Path, blocks: list[Block]) -> list[Task]:
    if options.layout == "folders":
        return folder_tasks(directory, blocks)
    return shard_tasks(directory, blocks, options.shard_mb * _MB)


def _check_mark(options: ImagenetOptions, hidden: Path, devkit: Devkit) -> None:
    """A second call must mean the same set; ConfigError with both otherwise."""
    mark = hidden / _MARK
    require_own(options.out, mark, "a data set that was begun here")
    meant = {
        "layout": options.layout,
        "shard_mb": options.shard_mb if options.layout == "shards" else None,
        "train_tar_bytes": options.train_tar.stat().st_size,
        "val_tar_bytes": options.val_tar.stat().st_size,
        "classes": len(devkit.synsets),
    }
    known = read_json(mark)
    if known is None:
        write_json(mark, meant)
    elif known != meant:
        differing = [name for name in meant if known.get(name) != meant[name]]
        raise ConfigError(
            f"--out {options.out} was begun with "
            + ", ".join(f"{name} {known.get(name)} (now {meant[name]})" for name in differing)
            + "; call it as before, remove the folder, or give another"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def _take_place(built: Path, place: Path) -> None:
    try:
        os.sync()  # the name must not outlive a power cut that the content does not
        os.rename(built, place)
    except OSError as error:
        raise write_error(place, error) from error


def _write_words(path: Path, devkit: Devkit, hidden: Path) -> None:
    lines = [f"{synset.wnid} {synset.words}\n" for synset in devkit.synsets]
    with whole_file(path, hidden) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
