"""Decodes images as training does, with one verdict for each and what the decoders print.

The graph is training's own, with the whole image as the box. A file that libjpeg only warns about
is decoded, perhaps to grey blocks, and DALI does not pass the warning on: it is only on stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.crops import Plan, whole_boxes
from pipeline.data.dali import DecodeSettings, as_lists, graph_inputs, make_pipeline
from pipeline.data.dali.reasons import cause_of_one
from pipeline.data.index.manifest import Manifest
from pipeline.data.index.whole import file_flaw
from pipeline.data.parser import parser_flaw
from pipeline.data.stream import Selection
from pipeline.system.native import decoders_words

_SIDE = 8  # the resize must read every pixel and costs little more
_BATCH = 32
_BATCH_PIXELS = 40_000_000  # 120 MB of RGB: one image of 10000 x 10000 goes alone


class Verdict(NamedTuple):
    """Whether an image decodes, and the decoders' message: an error, or a warning."""

    kind: Literal["good", "suspect", "bad"]
    reason: str


class Decoder:
    """Decodes images of `manifest` on CPU in `threads` threads; see `listening`."""

    def __init__(self, manifest: Manifest, threads: int, said: BinaryIO) -> None:
        """Prepares a decoder. `said` gets what C code writes to stderr. Nothing is built yet."""
        self._manifest, self._said = manifest, said
        self._settings = DecodeSettings("cpu", torch.device("cpu"), threads, prefetch=1)
        self._inputs: Any = None
        self._pipes: dict[int, Any] = {}

    def verdicts(self, encoded: Mapping[int, NDArray[np.uint8]]) -> dict[int, Verdict]:
        """Decodes image files, (bytes,) uint8 by image.

        Batches that fail or warn are decoded again one by one, to know which image it was.
        """
        found: dict[int, Verdict] = {}
        for image, file in encoded.items():  # which must not be in a batch
            flaw = parser_flaw(file, self._size(image))
            found |= {} if flaw is None else {image: Verdict("bad", flaw)}
        for batch in self._batches(image for image in encoded if image not in found):
            whole = self._decode({image: encoded[image] for image in batch})
            if whole.kind == "good" or len(batch) == 1:
                found |= dict.fromkeys(batch, whole)
            else:
                found |= {image: self._decode({image: encoded[image]}) for image in batch}
        return found

    def _batches(self, images: Iterable[int]) -> Iterator[list[int]]:
        batch, pixels = list[int](), 0
        for image in images:
            width, height = self._size(image)
            own = width * height
            if batch and (len(batch) == _BATCH or pixels + own > _BATCH_PIXELS):
                yield batch
                batch, pixels = [], 0
            batch.append(image)
            pixels += own
        if batch:
            yield batch

    def _size(self, image: int) -> tuple[int, int]:
        return int(self._manifest.widths[image]), int(self._manifest.heights[image])

    def _decode(self, encoded: Mapping[int, NDArray[np.uint8]]) -> Verdict:
        chosen = _whole(self._manifest, np.array(list(encoded)))
        files = list(encoded.values())
        inputs = graph_inputs(chosen, files, self._manifest, self._settings)
        self._inputs = as_lists(inputs)  # kept: DALI reads their memory
        self._said.seek(0)
        self._said.truncate()
        size = 1 if len(files) == 1 else _BATCH
        failure: str | None = None
        try:
            self._pipe(size).run()
        except RuntimeError as error:
            del self._pipes[size]  # no longer valid, DALI says
            failure = str(error)
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        words = decoders_words(said, failed=failure is not None)
        if failure is not None:
            flaw = file_flaw(files[0].tobytes()) if len(files) == 1 else None
            return Verdict("bad", words or flaw or cause_of_one(failure))
        return Verdict("suspect" if words else "good", words)

    def _pipe(self, size: int) -> Any:
        if size not in self._pipes:
            pipe = make_pipeline(lambda: self._inputs, size, self._settings)
            pipe.build()
            self._pipes[size] = pipe
        return self._pipes[size]


def _whole(manifest: Manifest, images: NDArray[np.int64]) -> Selection:
    count = len(images)
    boxes = whole_boxes(manifest.heights[images], manifest.widths[images])
    offsets = np.zeros((count, 3), dtype=np.float32)
    plan = Plan(boxes, np.zeros(count, dtype=np.int32), offsets, (_SIDE, _SIDE))
    return Selection(images, images, np.zeros(count, dtype=np.int64), plan)


@contextlib.contextmanager
def listening(manifest: Manifest, threads: int) -> Iterator[Decoder]:
    """A decoder whose messages are what C code writes to descriptor 2 meanwhile; Python's own
    `sys.stderr` is unaffected."""
    sys.stderr.flush()
    before, python = os.dup(2), sys.stderr
    with tempfile.TemporaryFile() as said, open(os.dup(before), "w", buffering=1) as shown:
        os.dup2(said.fileno(), 2)
        sys.stderr = shown
        try:
            yield Decoder(manifest, threads, said)
        finally:
            os.dup2(before, 2)
            os.close(before)
            sys.stderr = python
