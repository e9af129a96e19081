"""Decodes images as training does, with one verdict for each and what the decoders print.

The graph is training's own, with the whole image as the box. A file that libjpeg only warns about
is decoded, perhaps to grey blocks, and DALI does not pass the warning on: it is only on stderr.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.crops import Plan, whole_boxes
from pipeline.data.dali import DecodeSettings, as_lists, graph_inputs, make_pipeline
from pipeline.data.index.manifest import Manifest
from pipeline.data.stream import Selection

_SIDE = 8  # the resize must read every pixel and costs little more
_BATCH = 32
_BATCH_PIXELS = 40_000_000  # 120 MB of RGB: one image of 10000 x 10000 goes alone
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


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
        for batch in self._batches(encoded):
            whole = self._decode({image: encoded[image] for image in batch})
            if whole.kind == "good" or len(batch) == 1:
                found |= dict.fromkeys(batch, whole)
            else:
                found |= {image: self._decode({image: encoded[image]}) for image in batch}
        return found

    def _batches(self, images: Iterable[int]) -> Iterator[list[int]]:
        batch, pixels = list[int](), 0
        for image in images:
            own = int(self._manifest.widths[image]) * int(self._manifest.heights[image])
            if batch and (len(batch) == _BATCH or pixels + own > _BATCH_PIXELS):
                yield batch
                batch, pixels = [], 0
            batch.append(image)
            pixels += own
        if batch:
            yield batch

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
        words = _COLOURS.sub("", self._said.read().decode(errors="replace"))
        lines = [line.strip() for line in words.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        first = next(iter(errors or lines), "")[:200]  # later ones follow from it
        if failure is not None:
            return Verdict("bad", first or _last_line(failure))
        return Verdict("suspect" if first else "good", first)

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


def _last_line(failure: str) -> str:
    lines = [line.strip() for line in failure.splitlines() if "ailure" in line or "ailed" in line]
    return (lines or [failure.strip()])[-1][:200]


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
