"""Files written whole or not at all, one writer per folder, and whether a disk has room."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import ConfigError, require
from pipeline.system.files import locked, remove_partials, replacing

HIDDEN = ".trainyard"
"""Folder of what this program keeps beside the images; scans pass over it."""

_RESERVE_BYTES = 64 << 20  # a file system that is full to the last byte fails other programs too

T = TypeVar("T")


@contextlib.contextmanager
def whole_file(path: Path, scratch: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Does as `replacing`, but what goes wrong is told by `write_error`."""
    try:
        with replacing(path, scratch, durable) as partial:
            yield partial
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> ConfigError:
    """The error of a write in words: what was written before stays, and a second call goes on."""
    if isinstance(error, ConfigError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ConfigError(
            f"{path} does not fit ({error.strerror}): make room; the same command goes on from here"
        )
    return ConfigError(f"{path} cannot be written: {error.strerror}; mend that and start again")


def write_json(path: Path, value: object) -> None:
    """Writes a small file, whole or not at all."""
    with whole_file(path) as new:
        new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None where there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[Path]:
    """Makes `folder/.trainyard` and holds its lock, which falls with the process; yields it.

    Waits while another process on this machine holds it.
    """
    hidden = folder / HIDDEN
    with contextlib.ExitStack() as held:
        try:
            hidden.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(hidden / "lock", wait=False))
            except BlockingIOError:
                print(f"another process is writing to {folder}: waiting for it", flush=True)
                held.enter_context(locked(hidden / "lock"))
        except OSError as error:
            raise write_error(hidden, error) from error
        remove_partials(hidden)  # of a call that was killed
        yield hidden


def require_room(folder: Path, needed_bytes: int) -> None:
    """Raises `ConfigError`, naming both numbers, when the disk of `folder` has less free."""
    free = shutil.disk_usage(folder).free
    if needed_bytes and needed_bytes + _RESERVE_BYTES > free:
        raise ConfigError(
            f"the disk of {folder} has {free / 1e9:.2f} GB free, but "
            f"{(needed_bytes + _RESERVE_BYTES) / 1e9:.2f} GB are needed; make room or give "
            "another folder"
        )


def on_disk(length: int, block: int = 4096) -> int:
    """Bytes that a file of `length` bytes takes, in whole blocks and with its inode."""
    return -(-length // block) * block + 512


def require_own(folder: Path, mark: Path, purpose: str) -> None:
    """Raises `ConfigError` when `folder` holds visible files and no `mark` of an earlier call."""
    if mark.exists():
        return
    strangers = [name for name in sorted(os.listdir(folder)) if name != HIDDEN]
    require(
        not strangers,
        f"{folder} already holds {', '.join(strangers[:3])}, which is not {purpose}; "
        "give an empty or a new folder",
    )


def in_threads(work: Callable[[T], object], tasks: Iterable[T], workers: int) -> None:
    """Does all tasks in threads; the first error ends the rest and is raised."""
    # Each thread takes the next task: a future for each of a million files would be 2 GB.
    left, taking, stop = iter(tasks), threading.Lock(), threading.Event()

    def loop() -> None:
        while not stop.is_set():
            with taking:
                task = list(itertools.islice(left, 1))
            if not task:
                return
            try:
                work(task[0])
            except BaseException:
                stop.set()
                raise

    with ThreadPoolExecutor(workers, thread_name_prefix="worker") as pool:
        futures = [pool.submit(loop) for _ in range(workers)]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()
