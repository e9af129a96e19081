"""A compressed tar archive, read once from its beginning to its end, within bounds.

Python's tarfile follows chains of headers by recursion and reads as much for one as it says of
itself; the parser that indexes tar archives does neither.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.data.index.tar_members import FILES, members
from pipeline.data.index.window import Window
from pipeline.system.regular import open_regular

_OPENERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_PAGE_BYTES = 1 << 16
_NO_END = 1 << 62  # of a stream, until it is there


def unpacked(
    path: Path, wanted: Callable[[str], bool], most_bytes: int
) -> Iterator[tuple[str, bytes]]:
    """Return name and content of each plain file of a tar archive whose name is `wanted`.

    The archive may be compressed with gzip, bzip2 or xz. Nothing is written to disk, so that no
    name can escape. At most `most_bytes` are unpacked. BadContainer for a damaged archive or a
    larger one, OSError.
    """
    with _decompressed(path) as stream:
        window = _Stream(path, stream, most_bytes)
        for member in members(window, 0, _NO_END):
            name = member.path.decode(errors="replace")
            if member.kind in FILES and wanted(name):
                yield name, window.read_all(member.offset, member.length)
        # The checksum of all that was unpacked comes last.
        window.drain()


@contextmanager
def _decompressed(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb", opener=open_regular) as file:
        start = file.peek(8)[:8]
        opener = next((one for magic, one in _OPENERS.items() if start.startswith(magic)), None)
        yield file if opener is None else opener(file)


class _Stream(Window):
    """A window on a stream, which reads forwards only and learns the length at the end."""

    def __init__(self, path: Path, stream: BinaryIO, most_bytes: int) -> None:
        super().__init__(path, -1, most_bytes)
        self._stream = stream
        self._read = 0  # bytes of the stream, of which the last are kept

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes at `offset`, fewer only where the stream ends."""
        start = self._read - len(self._kept)
        assert offset >= start, "a stream is read forwards"
        self._kept = self._kept[offset - start :]
        while self._read < offset:
            if not self._next(min(_PAGE_BYTES, offset - self._read)):
                return b""
            self._kept = b""
        if len(self._kept) < count:
            parts = [self._kept]
            while (missing := offset + count - self._read) > 0:
                # Never as many at once as a header says.
                part = self._next(min(max(_PAGE_BYTES, missing), 1 << 24))
                if not part:
                    break
                parts.append(part)
            self._kept = b"".join(parts)
        self.position = offset
        return self._kept[:count]

    def read_all(self, offset: int, count: int) -> bytes:
        """Return `count` bytes at `offset`; BadContainer where the stream ends before."""
        content = self.read(offset, count)
        if len(content) < count:
            raise self.bad(offset + len(content), "the archive ends within a member: it is cut off")
        return content

    def drain(self) -> None:
        """Read to the end."""
        while self._next(_PAGE_BYTES):
            pass

    def _next(self, count: int) -> bytes:
        try:
            part = self._stream.read(count)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the file system's; those of damaged files have no number
            reason = f"of what is unpacked its compression is damaged or cut off ({error})"
            raise self.bad(self._read, reason) from error
        self._read += len(part)
        if self._read > self.length:
            reason = f"it is still not at its end, and at most {self.length} bytes are unpacked"
            raise self.bad(self._read, reason, "give the archive as it comes from its source")
        return part
