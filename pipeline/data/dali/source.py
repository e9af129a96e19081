"""What goes into a graph: batches planned and read ahead by threads, handed to DALI without a copy.

DALI reads the memory of the arrays themselves, and leaves it to the caller to keep it: a batch
stays here until DALI has given it out. (DALI 2.4 keeps the arrays too, which its documentation does
not promise.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.data.dali import graph
from pipeline.data.dali.settings import DecodeSettings
from pipeline.data.images import BadImage, ImageSet
from pipeline.data.parser import require_parsed
from pipeline.data.stream import ImageStream, Selection
from pipeline.system.files import patiently

_READERS = 8  # file reads in flight; they wait on the disk or the network, not on a core


@dataclass(frozen=True)
class Prepared:
    """A batch on its way through DALI: its selection of `image_set`, and the inputs of the graph
    twice, as arrays and as DALI's lists over the same memory."""

    image_set: ImageSet
    selection: Selection
    inputs: tuple[Any, ...]
    lists: tuple[Any, ...]

    def singles(self) -> Iterator[tuple[Any, ...]]:
        """The graph's inputs of each image, as a batch of one."""
        for i in range(len(self.selection.images)):
            yield tuple(column[i : i + 1] for column in self.inputs)


class Source:
    """A graph's inputs for chunk after chunk of positions; DALI calls it for each batch.

    A batch that cannot be prepared ends the inputs: `failure` then says why.
    """

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._planners = ThreadPoolExecutor(settings.prefetch + 1, thread_name_prefix="plan")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._chunks: Iterator[tuple[ImageStream, np.ndarray]] = iter(())
        self._ahead: deque[Future[Prepared]] = deque()
        self._in_dali: deque[Prepared] = deque()
        self.failure: Exception | None = None

    def start(self, stream: ImageStream, chunks: Iterable[np.ndarray]) -> None:
        """Begins to read the batches of `stream` at `chunks`; DALI must have nothing left to give
        out."""
        assert not self._in_dali, "DALI still reads the memory of earlier batches"
        self._drop_ahead()
        self.failure = None
        self._chunks = ((stream, chunk) for chunk in chunks)
        for _ in range(self._settings.prefetch + 1):
            self._prepare_next()

    def __call__(self) -> tuple[Any, ...]:
        """DALI's callback; everything is already prepared."""
        if not self._ahead or self.failure is not None:
            raise StopIteration
        try:
            prepared = self._ahead.popleft().result()
        except Exception as error:
            # Raised only when the batches before it have been given out.
            self.failure = error
            raise StopIteration from None
        self._prepare_next()
        self._in_dali.append(prepared)
        return prepared.lists

    @property
    def unfinished(self) -> bool:
        """Whether DALI holds batches that it has not given out."""
        return bool(self._in_dali)

    def given_out(self) -> Prepared:
        """The oldest batch in DALI, which has been given out or has failed: nothing here keeps its
        memory any longer."""
        return self._in_dali.popleft()

    def forget(self) -> None:
        """Gives up what is in DALI, once the graph is shut down and reads no more."""
        self._in_dali.clear()

    def close(self) -> None:
        """Ends the threads."""
        self._planners.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def _drop_ahead(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _prepare_next(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is not None:
            self._ahead.append(self._planners.submit(self._prepare, *chunk))

    def _prepare(self, stream: ImageStream, positions: np.ndarray) -> Prepared:
        selection, images = stream.select(positions), stream.image_set
        # One task per reader, not per file: 25 us of Python each would add up at 8,000 files/s.
        shares = np.array_split(selection.images, min(_READERS, len(selection.images)))
        encoded = [
            one for some in self._readers.map(partial(_read, images), shares) for one in some
        ]
        inputs = graph.graph_inputs(selection, encoded, images, self._settings)
        return Prepared(images, selection, inputs, graph.as_lists(inputs))


def _read(image_set: ImageSet, images: np.ndarray) -> list[np.ndarray]:
    return [read_patiently(image_set, int(image)) for image in images]


def read_patiently(manifest: ImageSet, image: int) -> np.ndarray:
    """Calls `manifest.read` with retries; a file that is read but cannot be used is not retried.

    Raises `BadImage` also for a file that DALI could not begin to decode, which must not be in a
    batch."""
    content = patiently(
        lambda: manifest.read(image),
        BadImage,
        lambda error, nap_sec: f"warning: {error}; it is read again in {nap_sec:g} s",
    )
    if content.ndim == 1:  # encoded
        require_parsed(content, manifest, image)
    return content
