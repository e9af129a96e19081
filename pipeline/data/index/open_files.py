"""Container files that are open for reading, and where their images lie in them."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_OPEN = 4096


class ContainerFiles:
    """Reads from any of many files; may be used by several threads at once.

    The files used last stay open: at most a quarter of what the process may have open, as training
    and validation each hold one of these and other parts need descriptors too.
    """

    def __init__(self, paths: Sequence[bytes]) -> None:
        """Name the files; none is opened before it is read from."""
        self._paths = paths
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = soft == resource.RLIM_INFINITY
        self._most = _MOST_OPEN if unlimited else max(1, min(_MOST_OPEN, soft // 4))
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, container: int, offset: int, length: int) -> NDArray[np.uint8]:
        """Return `length` bytes at `offset`, fewer where the file ends; OSError if it fails."""
        file = self._file(container)
        content = np.empty(length, dtype=np.uint8)
        done = 0
        while done < length:
            count = os.preadv(file.descriptor, [content[done:].data], offset + done)
            if count == 0:
                break
            done += count
        return content[:done]

    def _file(self, container: int) -> _OpenFile:
        with self._lock:
            file = self._open.get(container)
            if file is not None:
                self._open.move_to_end(container)
                return file
        # Opened outside the lock: on a network file system others need not wait for it.
        file = _OpenFile(self._paths[container])
        with self._lock:
            self._open[container] = file
            self._open.move_to_end(container)
            if len(self._open) > self._most:
                self._open.popitem(last=False)
        return file


class _OpenFile:
    """A descriptor that is closed when the last thread that reads from it has let go of it."""

    def __init__(self, path: bytes) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


GAP_BYTES = 4


def without_gaps(content: NDArray[np.uint8], gaps: Sequence[int]) -> NDArray[np.uint8]:
    """Return `content` without the 4 bytes at each of the `gaps`, counted before any is taken."""
    own = np.ones(len(content), dtype=bool)
    for gap in gaps:
        own[gap : gap + GAP_BYTES] = False
    return content[own]
