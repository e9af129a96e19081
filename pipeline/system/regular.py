"""Opens regular files only, and reads no more of them than may be.

A FIFO, a socket, a device or a folder may have any file's name. Opening a FIFO waits for a writer,
a device may never end; both would hold every rank, for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a folder",
}


class NotTaken(OSError):
    """A file that no second try makes readable: it is no regular file, or too large."""


def kind_of(mode: int) -> str:
    """Return what a file of `st_mode` is, in words: "a FIFO"."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def open_regular(path: Path | bytes | str, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file, at once; an `opener` of `open` too.

    NotTaken, with the kind, for anything else; OSError.
    """
    try:
        # No effect on a regular file; a FIFO opens without a writer.
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # of a socket, or a device that is not there
            raise _not_regular(path, os.stat(path).st_mode) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(path, mode)
    return descriptor


def read_regular(path: Path | bytes | str, most_bytes: int) -> bytes:
    """Return the content of a regular file of at most `most_bytes`; else NotTaken, or OSError."""
    with open(open_regular(path), "rb", buffering=0) as file:
        content = bytearray()
        # One byte more shows a file that has grown too large, whatever size was said.
        while part := file.read(min(1 << 24, most_bytes + 1 - len(content))):
            content += part
    if len(content) > most_bytes:
        reason = f"it has more than the {most_bytes} bytes that such a file can have"
        raise NotTaken(errno.EFBIG, reason, os.fsdecode(path))
    return bytes(content)


def whole(path: Path) -> bytes:
    """Return the content of a regular file; NotTaken for anything else, OSError."""
    with open(path, "rb", opener=open_regular) as file:
        return file.read()


def _not_regular(path: Path | bytes | str, mode: int) -> NotTaken:
    reason = f"it is {kind_of(mode)}, not a regular file"
    return NotTaken(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, reason, os.fsdecode(path))
