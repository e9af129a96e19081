"""Where images lie in containers, and reading them from files that stay open."""

from __future__ import annotations

import json
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.index.arrow_file import column
from pipeline.data.index.recordio import GAP_BYTES, without_gaps

_MOST_OPEN = 4096


class ContainedImages:
    """Where the images of a manifest lie in containers, and reading them from there."""

    def __init__(self, table: pa.Table, prefix: bytes) -> None:
        metadata = table.schema.metadata
        self._paths = [prefix + os.fsencode(name) for name in json.loads(metadata[b"containers"])]
        self._gaps: dict[int, list[int]] = dict(json.loads(metadata[b"gaps"]))
        self._numbers: NDArray[np.int32] = column(table, "container").to_numpy()
        self._offsets: NDArray[np.int64] = column(table, "offset").to_numpy()
        self._open = ContainerFiles(self._paths)

    def describe(self, index: int, file: bytes) -> bytes:
        """Say where an image lies, `file` being its class and name."""
        place = self._paths[self._numbers[index]], file, self._offsets[index]
        return b"%b:%b at byte %d" % place

    def read(self, index: int, length: int) -> NDArray[np.uint8]:
        """Return the image's `length` bytes, fewer where the container ends; OSError."""
        gaps = self._gaps.get(index, ())
        offset = int(self._offsets[index])
        raw = length + GAP_BYTES * len(gaps)
        content = self._open.read(int(self._numbers[index]), offset, raw)
        return without_gaps(content, gaps) if gaps else content


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
