"""Reads a growing text file, each byte once: a read costs what is new, not the whole file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_CHECKED_BYTES = 512


class Tail:
    """The complete lines added to a text file; a missing file has none.

    A restart rewrites a run's metrics without what it takes back, and so does copying a run over
    it. Another file of the same name, a shorter one, or other bytes in front of where the last look
    ended show that; the file is then read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id = (0, 0)
        self._offset = 0
        self._end = b""  # the last bytes in front of the offset

    def read(self) -> tuple[bool, list[bytes]]:
        """Whether the lines are from the file's beginning, and the lines since the last call,
        without their ends; the first call returns all."""
        try:
            with open(self._path, "rb") as file:
                if not self._is_continued(file):
                    self._offset, self._end = 0, b""
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            self._offset, self._end = 0, b""
            return True, []
        whole = content[: content.rfind(b"\n") + 1]
        from_start = self._offset == 0
        self._offset += len(whole)
        self._end = (self._end + whole[-_CHECKED_BYTES:])[-_CHECKED_BYTES:]
        return from_start, whole.splitlines()

    def _is_continued(self, file: BinaryIO) -> bool:
        """Whether what was read before is still in front of the offset."""
        about = os.fstat(file.fileno())
        file_id, self._file_id = self._file_id, (about.st_dev, about.st_ino)
        if file_id != self._file_id or about.st_size < self._offset:
            return False
        file.seek(self._offset - len(self._end))
        return file.read(len(self._end)) == self._end


class NewLines:
    """The lines added to a text file, each once: of a rewritten file only those that were not in
    the old one. Every line has its time, so that no two are alike."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._seen: set[int] = set()  # their hashes

    def __call__(self) -> list[str]:
        """The lines since the last call; the first call returns all."""
        from_start, lines = self._tail.read()
        if from_start:
            lines = [line for line in lines if hash(line) not in self._seen]
        self._seen.update(map(hash, lines))
        return [line.decode("utf-8", errors="replace") for line in lines]
