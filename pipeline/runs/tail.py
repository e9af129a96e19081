"""What comes to a text file, each byte read once: a look costs what is new, not what there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_CHECKED_BYTES = 512


class Tail:
    """The lines that come to a text file, whole ones only; a file that is not there has none.

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
        """The lines since the last call, first all there are, without their ends; and whether they
        are the file's from its beginning."""
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
    """The lines that come to a text file, each once: of a file that is rewritten only those
    that were not in the old one. Every line has its time, so that no two are alike."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._seen: set[int] = set()  # their hashes

    def __call__(self) -> list[str]:
        """What has come since the last call; first, all there is."""
        from_start, lines = self._tail.read()
        if from_start:
            lines = [line for line in lines if hash(line) not in self._seen]
        self._seen.update(map(hash, lines))
        return [line.decode("utf-8", errors="replace") for line in lines]
