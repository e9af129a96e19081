"""Files of a run that may wait: a full disk stops neither the training nor its checkpoints."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("trainyard")


class Room:
    """What a run's file system has left, and whether somebody was told that it is too little.

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
        """Warns, the first time only."""
        if self._told:
            return
        self._told = True
        log.warning(
            "warning: %s cannot be written: %s; the training goes on, and what it would have got "
            "is kept in memory until there is room",
            path, error.strerror or error,
        )  # fmt: skip


class PatientFile:
    """A file that is only ever appended to, and only by whole records.

    What cannot be written now is cut off again and tried anew with the next record.
    """

    def __init__(self, path: Path, room: Room) -> None:
        self._path, self._room = path, room
        self._waiting = bytearray()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, record: bytes) -> None:
        """Appends `record`, after all that still waits; never raises `OSError`."""
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
        """Tries once more to write what waits, and closes; never raises `OSError`."""
        if self._waiting:
            self.write(b"")
        try:
            os.close(self._file)
        except OSError as error:  # NFS says only here that the disk is full
            self._room.refused(self._path, error)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write; it takes the place of `path` if the body ends well."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
