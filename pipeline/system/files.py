"""Files: written atomically, locked by one process, read again after a hiccup, and those of a run
that survive a full disk.

Imports the standard library only: `launch.horovod_build` needs it before anything is installed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pipeline.system.regular import NotTaken, whole

log = logging.getLogger("trainyard")
files_log = logging.getLogger("trainyard.files")  # each rank's own, so all ranks' are shown

READ_AGAIN_SEC = (0.1, 0.5, 2.0)
"""Naps before a refused read is tried again."""

_PARTIAL = ".partial-"
_STALE_SEC = 3600.0  # a write takes no longer than this
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of file systems that do not have it

_Found = TypeVar("_Found")
_Error = TypeVar("_Error", bound=Exception)


@contextmanager
def replacing(path: Path, scratch: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Yields a new path to write to; that file replaces `path` if the body succeeds, and is removed
    if not. So `path` holds the old file or the whole new one, whoever else writes it too.

    The path lies next to `path`, where leftovers of processes killed over an hour ago are removed,
    or in `scratch`, a folder of the same file system whose owner calls `remove_partials`.
    `durable`: the content and then the name are synced to disk, which takes too long for a million
    small files. Raises the system's `OSError`, with the name `path` in place of the new file's.
    """
    if scratch is None:
        remove_partials(path.parent, _STALE_SEC)
    # The end of the name, as some writers go by the suffix: it may already be as long as can be.
    partial = (scratch or path.parent) / f"{_PARTIAL}{secrets.token_hex(4)}-{path.name[-32:]}"
    try:
        yield partial
        if durable:
            _sync(partial)
        os.replace(partial, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # the cause counts; its room may be needed to tell it
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file as `replacing` does, but through a link and into a device: a user may ask for
    /dev/stdout. Raises `OSError`.

    In UTF-8, and the bytes of a file's name that are none are themselves: `read_text` and the
    file system find the same name.
    """
    content = text.encode("utf-8", "surrogateescape")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with contextlib.suppress(BrokenPipeError):  # the pipe's reader has had what it wanted
            path.write_bytes(content)
        return
    with replacing(path) as new:
        new.write_bytes(content)


def read_text(path: Path) -> str:
    """The text of a file that `write_text` wrote. Raises `OSError`."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def remove_partials(folder: Path, older_than_sec: float = 0.0) -> None:
    """Removes from `folder` what killed writers left, if it is at least that old."""
    for left in folder.glob(f"{_PARTIAL}*"):
        try:
            if not older_than_sec or time.time() - left.stat().st_mtime > older_than_sec:
                left.unlink()
        except OSError:  # another process's, which is done now, or another user's
            log.debug("%s is not removed", left, exc_info=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Lets an `OSError` of the body name `path`, if it names no file: those of operations on an
    open descriptor do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int]:
    """Holds the lock of a file, created if need be, until the body or the process ends; yields the
    file's open descriptor.

    Without `wait` raises `BlockingIOError` if another process holds it; `OSError` if it cannot be
    opened, or, without a filename, if its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


def patiently(
    read: Callable[[], _Found], kind: type[_Error], words: Callable[[_Error, float], str]
) -> _Found:
    """Returns `read()`, retried when the file system refuses: servers fail over, mounts hiccup.

    Retries after an `OSError`, or an error raised from one, of this `kind`; others, and the last
    try's, are raised at once. Each retry logs `words` of the error and the seconds until then.
    """
    for nap_sec in READ_AGAIN_SEC:
        try:
            return read()
        except kind as error:
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise
            files_log.warning("%s", words(error, nap_sec))
            time.sleep(nap_sec)
    return read()


def content_of(path: Path, what: str) -> bytes:
    """The content of a file that words call `what`, read again when the file system refuses it.

    Raises the `OSError` that says that there is none, or no regular file, at once, and any other,
    also that of too little memory, when it comes again and again.
    """

    def read() -> bytes | OSError:
        try:
            return whole(path)
        except (FileNotFoundError, NotADirectoryError, NotTaken) as error:
            return error
        except MemoryError as error:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path)) from error

    def words(error: OSError, nap_sec: float) -> str:
        return f"{what} cannot be read: {error.strerror or error}; tried again in {nap_sec:g} s"

    found = patiently(read, OSError, words)
    if isinstance(found, OSError):
        raise found
    return found


class Room:
    """Free space of a run's file system, and whether a warning was given that it is too little.

    `reserve_bytes` belong to the next checkpoint, which needs them more than any curve.
    """

    def __init__(self, folder: Path, reserve_bytes: int = 0) -> None:
        self._folder, self._reserve_bytes = folder, reserve_bytes
        self._told = False

    def require(self, size_bytes: int) -> None:
        """Raises `OSError` if writing `size_bytes` would leave too little for a checkpoint."""
        if not self._reserve_bytes:
            return
        disk = os.statvfs(self._folder)
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes < self._reserve_bytes + size_bytes:
            raise OSError(
                f"only {free_bytes / 1e6:.1f} MB are free on its disk, and a checkpoint needs "
                f"{self._reserve_bytes / 1e6:.1f} MB"
            )

    def refused(self, path: Path, error: OSError) -> None:
        """Logs a warning, the first time only."""
        if self._told:
            return
        self._told = True
        log.warning(
            "warning: %s cannot be written: %s; training continues, and what it would have got "
            "is kept in memory until there is room",
            path, error.strerror or error,
        )  # fmt: skip


class PatientFile:
    """A file that is only ever appended to, and only by whole records.

    What cannot be written now is cut off and retried with the next record.
    """

    def __init__(self, path: Path, room: Room) -> None:
        self._path, self._room = path, room
        self._waiting = bytearray()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, record: bytes) -> None:
        """Appends `record`, after all records still waiting; never raises `OSError`."""
        self._waiting += record
        end = -1
        try:
            self._room.require(len(self._waiting))
            end = os.fstat(self._file).st_size
            left = memoryview(bytes(self._waiting))
            while left:
                left = left[os.write(self._file, left) :]
            self._waiting.clear()
        except OSError as error:
            if end >= 0:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, end)
            self._room.refused(self._path, error)

    def close(self) -> None:
        """Retries the records that wait, and closes; never raises `OSError`."""
        if self._waiting:
            self.write(b"")
        try:
            os.close(self._file)
        except OSError as error:  # NFS says only here that the disk is full
            self._room.refused(self._path, error)
