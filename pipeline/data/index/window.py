"""Byte ranges of containers, read with retries, and the entries that a scan finds in them."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.data.index.labels import MOST_DIGITS, Pairs
from pipeline.data.index.passed import Passed
from pipeline.system.files import patiently
from pipeline.system.regular import NotTaken, open_regular, read_regular

log = logging.getLogger("trainyard")

IMAGE_EXTENSIONS = (
    ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff",
)  # fmt: skip
RECORDIO_LIST = ".lst"
"""Suffix of the file of names that may lie next to a .rec file."""

_ENDINGS = tuple(extension.encode() for extension in IMAGE_EXTENSIONS)

SIDE_FILE_BYTES = 1 << 30
"""Most bytes of a file next to a container: its index or list."""

# One page: a header, and the first bytes of the image behind it, in one read.
_READ_BYTES = 4096
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
}

_Found = TypeVar("_Found")


class BadContainer(ValueError):
    """A container that cannot be indexed; the message names it, the byte and the fix.

    reason: the message without the container and the fix, where it is about a byte.
    """

    reason = ""


class Entry(NamedTuple):
    """One image of a container.

    label: its class's name, or a number from 0 that a list of classes names. name: its file name,
    or what stands for it. offset, length: its bytes in the container. width, height: pixels as
    stored, 0 without a readable header. gaps: where, counted from `offset`, 4 bytes lie inside it
    that are not its own; `length` leaves them out.
    """

    label: bytes | int
    name: bytes
    offset: int
    length: int
    width: int
    height: int
    gaps: tuple[int, ...] = ()


class Window:
    """Reads a file by position and keeps the last page, as what comes next often lies in it.

    path: what to call the file. length: its bytes. position: about how far the walk has come.
    passed: what the walk does not take. pairs: classes of which it found number and name.
    counts_from: the number that its format gives the first class. tell: what takes warnings.
    """

    def __init__(self, path: Path | bytes, descriptor: int, length: int) -> None:
        """Read from an open file `descriptor`, which stays the caller's."""
        self._path = path
        self.length = length
        self.position = 0
        self.passed = Passed()
        self.pairs = Pairs()
        self.counts_from = 0
        self.tell: Callable[..., object] = log.warning
        self._descriptor = descriptor
        self._kept = b""

    @property
    def path(self) -> Path:
        """Made when asked for, as it takes longer than to open a file."""
        return Path(os.fsdecode(self._path))

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes at `offset`, fewer only where the file ended when it was opened.

        BadContainer if it ends earlier by now; OSError.
        """
        start = offset - self.position
        if start < 0 or start + count > len(self._kept):
            self._kept = self._pread(max(count, _READ_BYTES), offset)
            self.position, start = offset, 0
            if len(self._kept) < count and offset + len(self._kept) < self.length:
                raise self.bad(offset + len(self._kept), "it was cut off while it was read")
        return self._kept[start : start + count]

    def _pread(self, count: int, offset: int) -> bytes:
        return os.pread(self._descriptor, count, offset)

    def bad(
        self, offset: int, reason: str, fix: str = "copy it again from its source"
    ) -> Exception:
        """Return the error for something wrong at `offset`."""
        where = f"at byte {offset} {reason}"
        error = BadContainer(f"the container {self.path} cannot be used: {where}; {fix}")
        error.reason = where
        return error

    def check_inside(self, what: str, offset: int, end: int) -> None:
        """Raise BadContainer if what begins at `offset` would end behind the file's end."""
        if end > self.length:
            reason = f"begins {what} that would end at {end}, but the file ends at {self.length}"
            raise self.bad(offset, f"{reason}: it is cut off")

    def check_not_compressed(self) -> None:
        """Raise BadContainer if the file is compressed as a whole, by its first bytes."""
        start = self.read(0, 8)
        for magic, kind in _COMPRESSED.items():
            if start.startswith(magic):
                fix = "unpack that, images do not get smaller by it"
                raise self.bad(0, f"begins {kind}, which cannot be read by byte range", fix)

    def check_against_index(self, index: Path, offset_column: int, begins: Sequence[int]) -> None:
        """Raise BadContainer if the index, if there is one, has other records than the walk found.

        index: lines of numbers with blanks between, in `offset_column` where a record begins.
        begins: where the records of the file begin, ascending. An index that is no such file is
        warned of and not used. OSError if it cannot be read.
        """
        if not os.path.lexists(index):
            return
        offsets = array("q")
        content = reading(index, lambda: read_regular(index, SIDE_FILE_BYTES))
        for number, line in enumerate(content.splitlines(), start=1):
            parts = line.split()
            # Not by all(), which takes 0.3 s more for a million lines.
            if not (len(parts) == 2 and is_number(parts[0]) and is_number(parts[1])):
                self.tell("the index %s is not used: its line %d is not two numbers", index, number)
                return
            offsets.append(int(parts[offset_column]))
        if np.array_equal(np.sort(np.asarray(offsets)), np.asarray(begins)):
            return  # as nearly always; sets of a million numbers take long
        fix = f"copy it again from its source, or remove {index.name} if it is another file's"
        beyond = [offset for offset in offsets if offset >= self.length]
        if beyond:
            reason = (
                f"the file ends, but {index} has {len(beyond)} of its {len(offsets)} records from "
                f"there on: it is cut off"
            )
            raise self.bad(self.length, reason, fix)
        strange, unlisted = set(offsets) - set(begins), set(begins) - set(offsets)
        if strange:
            raise self.bad(min(strange), f"no record begins, where {index} has one", fix)
        if unlisted:
            reason = (
                f"begins one of {len(begins)} records, of which {index} has {len(set(offsets))}"
            )
            raise self.bad(min(unlisted), reason, f"write {index.name} again, or remove it")


class _PatientWindow(Window):
    """Reads with retries, as walking a large container from its beginning would cost much more."""

    def _pread(self, count: int, offset: int) -> bytes:
        return reading(self._path, lambda: super(_PatientWindow, self)._pread(count, offset))


def unreadable(what: str, error: OSError, fix: str = "copy it again from its source") -> ValueError:
    """Return the error for `what`, a kind of file and its path, which the file system refuses.

    `fix` is what helps whatever the reason is, unless the file is gone.
    """
    if isinstance(error, PermissionError):
        fix = f"give this user the right to read it, or {fix}"
    elif isinstance(error, NotTaken):
        fix = "put the right file in its place, or remove it"
    elif isinstance(error, FileNotFoundError):  # a link to nowhere, or removed meanwhile
        fix = "put back what it links to, or remove the link"
    return ValueError(f"{what} cannot be read: {error.strerror}; {fix}")


@contextmanager
def opened(path: Path) -> Iterator[Window]:
    """Open a container; ValueError for whatever the file system keeps refusing."""
    descriptor = -1
    try:
        descriptor = reading(path, lambda: open_regular(path))
        # Read-ahead would fetch the images too, a hundred times what the walk needs.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield _PatientWindow(path, descriptor, os.fstat(descriptor).st_size)
    except OSError as error:
        raise unreadable(f"the container {os.fsdecode(error.filename or path)}", error) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def reading(path: Path | bytes, read: Callable[[], _Found]) -> _Found:
    """Return `read()`, which reads from `path`, with retries; OSError in the end.

    NotTaken at once: what the file is does not pass.
    """

    def words(error: OSError, nap_sec: float) -> str:
        place = os.fsdecode(path)
        return f"{place} cannot be read: {error.strerror}; tried again in {nap_sec:g} s"

    def once() -> _Found | NotTaken:
        try:
            return read()
        except NotTaken as error:
            return error

    found = patiently(once, OSError, words)
    if isinstance(found, NotTaken):
        raise found
    return found


def is_number(digits: bytes) -> bool:
    """Return whether a text is a whole number from 0 that 64 bits hold."""
    return digits.isdigit() and len(digits) <= MOST_DIGITS


def is_image(name: bytes) -> bool:
    """Return whether a file is an image, by its name."""
    return name.lower().endswith(_ENDINGS)
