"""Helpers of long subcommands: atomic writes, one writer per folder, free space, threads, and
progress."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import ConfigError, require
from pipeline.system.console import Bar, say
from pipeline.system.files import locked, remove_partials, replacing
from pipeline.system.regular import read_regular

HIDDEN = ".trainyard"
"""Folder of what this program keeps next to the images; scans pass over it."""

_MARK_BYTES = 1 << 24
_RESERVE_BYTES = 64 << 20  # a file system that is full to the last byte fails other programs too

T = TypeVar("T")


@contextlib.contextmanager
def writing(path: Path, resumes: bool = False) -> Iterator[None]:
    """Turns an `OSError` of the body into the `ConfigError` of a write to `path`, for which there
    may be no room; `resumes` says that a second call resumes from what was written before."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            again = "; the same command resumes from here" if resumes else " and start again"
            raise ConfigError(
                f"{path} does not fit ({error.strerror}): make room{again}"
            ) from error
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; fix that and start again"
        ) from error


@contextlib.contextmanager
def whole_file(path: Path, scratch: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Works as `replacing`, with the errors of `writing`; only calls that resume have a `scratch`
    folder, which they keep."""
    with writing(path, resumes=scratch is not None), replacing(path, scratch, durable) as partial:
        yield partial


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, with the errors of `writing`."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes a small file atomically."""
    with whole_file(path) as new:
        new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[Path]:
    """Makes `folder/.trainyard` and holds its lock, released with the process; yields the folder.

    Waits while another process on this machine holds it.
    """
    hidden = folder / HIDDEN
    with contextlib.ExitStack() as held:
        with writing(hidden):
            hidden.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(hidden / "lock", wait=False))
            except BlockingIOError:
                say(f"another process is writing to {folder}: waiting for it")
                held.enter_context(locked(hidden / "lock"))
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


def read_mark(option: str, folder: Path, mark: Path, purpose: str) -> dict[str, Any] | None:
    """What an earlier call recorded in the file `mark`, nothing if that is damaged; None
    where there was none.

    Raises `ConfigError`, naming the `option`, when `folder` then holds anything visible, so is not
    for this `purpose`, or is a file.
    """
    require(folder.is_dir(), f"{option} {folder} is a file; give a folder")
    if mark.exists():
        try:
            return dict(json.loads(read_regular(mark, _MARK_BYTES)))
        except (OSError, ValueError, TypeError, RecursionError):
            return {}
    with writing(folder):
        strangers = [name for name in sorted(os.listdir(folder)) if name != HIDDEN]
    require(
        not strangers,
        f"{option} {folder} already holds {', '.join(strangers[:3])}, which is not {purpose}; "
        "give an empty or a new folder",
    )
    return None


def require_same(
    there: str, known: Mapping[str, object], meant: Mapping[str, object], advice: str
) -> None:
    """Raises `ConfigError`, with what differs, unless what is `there`, the beginning of the
    sentence, was made with the same parameters; `advice` ends it."""
    differing = [
        f"{name} {known.get(name)} (now {value})"
        for name, value in meant.items()
        if known.get(name) != value
    ]
    require(not differing, f"{there} {', '.join(differing)}; {advice}")


def in_threads(work: Callable[[T], object], tasks: Sequence[T], workers: int) -> None:
    """Runs all tasks in threads; the first error ends the rest and is raised."""
    # The threads share the iterator: a future for each of a million files would be 2 GB.
    left, stop = iter(tasks), threading.Event()

    def loop() -> None:
        for task in left:
            if stop.is_set():
                return
            try:
                work(task)
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


class Progress(Bar):
    """Counts files and bytes towards known totals; `add` may be called from any thread."""

    def __init__(self, what: str, files: int, total_bytes: int) -> None:
        """Starts counting. `what` begins every line; the totals are of what is left to do."""
        super().__init__(total_bytes, what, unit="B", stream=sys.stderr)
        self._what = what
        self._files, self._bytes = files, total_bytes
        self._files_done = self._bytes_done = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def add(self, files: int, done_bytes: int) -> None:
        """Adds what has been done."""
        with self._lock:
            self._files_done += files
            self._bytes_done += done_bytes
            self.move(self._bytes_done, f"{self._files_done}/{self._files} files")
            if self.line_due():
                rate = self._bytes_done / (time.monotonic() - self._started)
                left = (self._bytes - self._bytes_done) / rate if rate else float("inf")
                line = (
                    f"{self._what}: {self._files_done} of {self._files} files, "
                    f"{self._bytes_done / 1e9:.2f} of {self._bytes / 1e9:.2f} GB, "
                    f"{rate / 1e6:.0f} MB/s, {left / 60:.1f} min left"
                )
                say(line, stream=sys.stderr)
