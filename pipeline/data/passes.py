"""Passes over a stream by one graph, which go on without files that turn out to be bad."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.dali import Batch, DecodeSettings, Loader
from pipeline.data.exclusion import Found, too_many
from pipeline.data.images import BadImage
from pipeline.data.stream import ImageStream, ValStream


class Passes:
    """A loader for one pass after another, in batches of at most `batch_size`.

    Its graph stands from the first pass on, as it takes seconds to build on a GPU. Between passes
    it holds its decoders and their memory, no batch, and threads that sleep.
    """

    def __init__(self, batch_size: int, decode: DecodeSettings) -> None:
        self._batch_size, self._decode = batch_size, decode
        self._loader: Loader | None = None

    def open(self, stream: ImageStream, chunks: Iterable[np.ndarray], length: int) -> Loader:
        """The loader, started on the `length` batches of `stream` at `chunks`; what was left of the
        pass before is lost."""
        if self._loader is None:
            self._loader = Loader(stream, chunks, length, self._batch_size, self._decode)
        else:
            self._loader.start(stream, chunks, length)
        return self._loader

    def close(self) -> None:
        """Ends the loader's threads and frees DALI's memory; another pass builds them anew."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None


class Pass:
    """A pass of `passes` over the batches of `stream` from number `begin` up to `end` (None:
    without an end), batch n of which is at `positions(n)`, (B,) int64.

    A bad file is told to `leave_out`, after which `stream` must have another image in its place,
    and the pass goes on with the same batch; without `leave_out` it raises `BadImage`, as does a
    file that would be good again if it were restored.
    """

    def __init__(
        self, stream: ImageStream, positions: Callable[[int], np.ndarray], begin: int,
        end: int | None, passes: Passes, leave_out: Callable[[Found], object] | None = None,
    ) -> None:  # fmt: skip
        self._stream, self._positions, self._passes = stream, positions, passes
        self._end = sys.maxsize if end is None else end
        self._leave_out = leave_out
        self.number = begin
        """Of the next batch."""
        self._loader = self._open()

    def _open(self) -> Loader:
        begin, end, positions = self.number, self._end, self._positions
        left = (positions(number) for number in range(begin, end))
        return self._passes.open(self._stream, left, end - begin)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while True:
            try:
                batch = next(self._loader)
                self.number += 1
                return batch
            except BadImage as error:
                found = self._stream.locate(error, self._positions(self.number))
                if found is None or self._leave_out is None:
                    raise
            self._leave_out(found)
            self._loader = self._open()


class ValidationLoader(Pass):
    """This rank's batches of a validation, a pass of `passes`, past at most data.max_excluded bad
    files if data.bad_images says so.

    Batch n of `count` holds `positions(n)`, (B,) int64. What is passed
    over is added to `stream.excluded` and listed in `found`.
    """

    def __init__(
        self, stream: ValStream, positions: Callable[[int], np.ndarray], count: int,
        passes: Passes, data: DataConfig,
    ) -> None:  # fmt: skip
        self.found = met = list[Found]()

        def leave_out(found: Found) -> None:
            met.append(found)
            exclude_from(stream, found, data)

        excludes = data.bad_images == "exclude"
        super().__init__(stream, positions, 0, count, passes, leave_out if excludes else None)

    def close(self) -> None:
        """Closes the passes."""
        self._passes.close()


def exclude_from(stream: ValStream, found: Found, data: DataConfig) -> None:
    """Goes on with a validation without the image that was `found`. Raises `ValueError` if that
    makes more than data.max_excluded."""
    stream.excluded |= {found.image}
    if len(stream.excluded) > data.max_excluded:
        raise too_many(len(stream.excluded), data.max_excluded)
