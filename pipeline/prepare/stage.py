"""`prepare stage`: copies a data set to a node's own disk; the copy counts as the same data.

Times of files and folders are copied too. A manifest recognises its tree by them, so the source's
manifest, laid in the copy's .trainyard folder, is valid for the copy, and no header is read a
second time. A run finds it there, with data.cache_dir set or not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ConfigError, require
from pipeline.data.index.arrow_file import find_fresh
from pipeline.data.index.survey import Split, survey
from pipeline.prepare.files import (
    Progress,
    in_threads,
    make_folder,
    on_disk,
    only_writer,
    read_mark,
    require_room,
    whole_file,
    write_json,
)
from pipeline.prepare.index import manifests_of
from pipeline.prepare.options import StageOptions
from pipeline.system.console import say

log = logging.getLogger("trainyard")

_Ancestors = tuple[tuple[int, int], ...]  # device and inode of every folder above


class _File(NamedTuple):
    """A file of the source by its path below the root, with its bytes and time."""

    name: str
    length: int
    time_ns: int


def run(options: StageOptions) -> None:
    """Copies what is missing, nothing if the copy is complete. ConfigError if it cannot."""
    source, target = options.from_, options.to
    hashes = _hashes(source, options.cache_dir)
    with only_writer(target) as hidden:
        mark = hidden / "staged.json"
        known = read_mark("--to", target, mark, "a copy of a data set that was begun here") or {}
        other = known.get("data_hash", hashes)
        require(
            other == hashes,
            f"--to {target} holds a copy of other data ({_words(other)}, here {_words(hashes)}); "
            "remove it or give another folder",
        )
        if known.get("complete") and _unchanged(target, hashes):
            say(f"all of {source} is already in {target}")
            return
        write_json(mark, {"data_hash": hashes, "complete": False})
        files, copied_bytes = _copy(options, hidden, list(hashes))
        found = _hashes(target, tell=log.debug)
        require(
            found == hashes,
            f"{source} changed while it was copied ({_words(hashes)} before, {_words(found)} in "
            f"the copy); remove {target} and start again",
        )
        write_json(mark, {"data_hash": hashes, "complete": True})
    say(f"{source} lies in {target}: {files} files, {copied_bytes / 1e9:.2f} GB copied")


def _hashes(
    root: Path, cache_dir: Path | None = None, tell: Callable[..., object] = log.warning
) -> dict[Split, str]:
    """The data hash of each split; ConfigError where there is none. `tell` as in `manifests_of`."""
    manifests = manifests_of(root, cache_dir, "from", tell)
    return {split: one.digest for split, one in manifests.items()}


def _unchanged(target: Path, hashes: Mapping[Split, str]) -> bool:
    # Something may have cleaned the node's disk: folders' times show it without a walk.
    try:
        return _hashes(target, tell=log.debug) == hashes  # said of the source
    except ValueError:
        return False


def _words(hashes: Mapping[Split, str]) -> str:
    return ", ".join(f"{split} {digest[:12]}" for split, digest in hashes.items())


def _copy(options: StageOptions, hidden: Path, splits: Sequence[Split]) -> tuple[int, int]:
    """Copies files, then times of folders, then manifests; returns all files and the bytes
    copied."""
    source, target, workers = options.from_, options.to, options.workers
    folders, files = _walk(source, workers)
    for name, _ in folders:
        make_folder(target / name)
    missing = [file for file in files if not _is_there(target / file.name, file)]
    require_room(target, sum(on_disk(file.length) for file in missing))
    total = sum(file.length for file in missing)
    with Progress(f"copying to {target}", len(missing), total) as progress:

        def work(file: _File) -> None:
            _copy_file(source / file.name, target / file.name, hidden)
            progress.add(1, file.length)

        in_threads(work, missing, workers)
    _remove_strangers(target, {file.name for file in files}, folders)
    for name, time_ns in reversed(folders):
        os.utime(target / name, ns=(time_ns, time_ns))
    for split in splits:
        kept = find_fresh(source, split, options.cache_dir, survey(source, split).stamp)
        if kept is not None:
            index = kept[0]
            _copy_file(index, hidden / f"{split}.arrow", hidden)
            for means in index.parent.glob(f"{index.stem}-mean-*.npz"):
                _copy_file(means, hidden / (split + means.name.removeprefix(index.stem)), hidden)
    return len(files), total


def _walk(source: Path, workers: int) -> tuple[list[tuple[str, int]], list[_File]]:
    """Folders with their times, parents first, and files; all but names that begin with a dot.

    Links are followed. The time of a folder is taken before its entries are listed.
    """
    folders: list[tuple[str, int]] = []
    files: list[_File] = []
    level: list[tuple[str, _Ancestors]] = [("", ())]
    with ThreadPoolExecutor(workers) as pool:
        while level:
            listed = list(pool.map(lambda one: _list_folder(source, *one), level))
            level = []
            for folder, inner_folders, inner_files in listed:
                folders.append(folder)
                level += inner_folders
                files += inner_files
    return folders, files


def _list_folder(
    source: Path, name: str, ancestors: _Ancestors
) -> tuple[tuple[str, int], list[tuple[str, _Ancestors]], list[_File]]:
    with _reading(source / name):
        status = os.stat(source / name)
        here = (status.st_dev, status.st_ino)
        require(here not in ancestors, f"{source / name} is a link to a folder above it; remove it")
        entries = sorted(entry for entry in os.listdir(source / name) if entry[0] != ".")
    folders: list[tuple[str, _Ancestors]] = []
    files: list[_File] = []
    for path in (os.path.join(name, entry) for entry in entries):
        with _reading(source / path):
            found = os.stat(source / path)
        if stat.S_ISDIR(found.st_mode):
            folders.append((path, (*ancestors, here)))
        else:
            regular = stat.S_ISREG(found.st_mode)
            require(regular, f"{source / path} is neither a file nor a folder; remove it")
            files.append(_File(path, found.st_size, found.st_mtime_ns))
    return (name, status.st_mtime_ns), folders, files


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _is_there(path: Path, file: _File) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    # Whole seconds: some file systems keep no more.
    same_time = found.st_mtime_ns // 10**9 == file.time_ns // 10**9
    return found.st_size == file.length and same_time


def _copy_file(source: Path, target: Path, scratch: Path) -> None:
    """Copies bytes and time; the copy gets its name only when its size is the source's."""
    with whole_file(target, scratch, durable=False) as partial:  # they may be a million
        with _reading(source), open(source, "rb") as reader:
            status = os.fstat(reader.fileno())
            reader.peek(1)  # whether it can be read is the source's error, not the target's
        shutil.copyfile(source, partial)
        copied = os.stat(partial).st_size
        require(
            copied == status.st_size,
            f"{source} has {status.st_size} bytes, of which {copied} were copied: it changed "
            "meanwhile; start again",
        )
        os.utime(partial, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _remove_strangers(target: Path, files: set[str], folders: list[tuple[str, int]]) -> None:
    """Removes files of the copy that the source no longer has: a folder is counted whole."""
    for name, _ in folders:
        with os.scandir(target / name) as entries:
            for entry in entries:
                strange = os.path.join(name, entry.name) not in files
                if strange and entry.name[0] != "." and not entry.is_dir():
                    os.unlink(entry.path)
