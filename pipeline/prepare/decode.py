"""Decodes images as training does, one verdict for each, with what the decoders print on the way.

The graph is training's own, with the whole image as the box. What libjpeg only warns about decodes,
perhaps to grey blocks, and DALI hands no warning on: it stands on stderr and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.crops import Plan, whole_boxes
from pipeline.data.dali import DecodeSettings, graph_inputs, make_pipeline
from pipeline.data.index.manifest import Manifest
from pipeline.data.stream import Selection

_SIDE = 8  # the resize has to read every pixel and costs little more
_BATCH = 32
_BATCH_PIXELS = 40_000_000  # 120 MB of RGB: one image of 10000 x 10000 goes alone
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Verdict:
    """Whether an image decodes, and the decoders' words about it: an error, or a warning."""

    kind: Literal["good", "suspect", "bad"]
    reason: str


class Decoder:
    """Decodes images of `manifest` on CPU in `threads` threads.

    While it is open (a context manager), what C code writes to stderr is taken for its words;
    Python's own `sys.stderr` goes where it went.
    """

    def __init__(self, manifest: Manifest, threads: int) -> None:
        """Nothing is built yet."""
        self._manifest = manifest
        self._settings = DecodeSettings("cpu", torch.device("cpu"), threads, prefetch=1)
        self._inputs: Any = None
        self._pipes: dict[int, Any] = {}
        self._stack = contextlib.ExitStack()
        self._said: BinaryIO | None = None

    def __enter__(self) -> Decoder:
        """Takes stderr over."""
        self._said = self._stack.enter_context(_stderr_of_c())
        return self

    def __exit__(self, *_: object) -> None:
        """Gives stderr back and frees DALI's memory."""
        self._pipes.clear()
        self._stack.close()

    def verdicts(
        self, images: Sequence[int], encoded: Sequence[NDArray[np.uint8]]
    ) -> list[Verdict]:
        """Decode the images whose files (bytes,) uint8 are given, in order.

        Batches that fail or warn are decoded again one by one, to know which image it was.
        """
        found: list[Verdict] = []
        for first, last in self._batches(images):
            part, contents = images[first:last], encoded[first:last]
            whole = self._decode(part, contents)
            if whole.kind == "good" or len(part) == 1:
                found += [whole] * len(part)
                continue
            for image, content in zip(part, contents, strict=True):
                found.append(self._decode([image], [content]))
        return found

    def _batches(self, images: Sequence[int]) -> Iterator[tuple[int, int]]:
        first, pixels = 0, 0
        for i, image in enumerate(images):
            own = int(self._manifest.widths[image]) * int(self._manifest.heights[image])
            if i > first and (i - first == _BATCH or pixels + own > _BATCH_PIXELS):
                yield first, i
                first, pixels = i, 0
            pixels += own
        if first < len(images):
            yield first, len(images)

    def _decode(self, images: Sequence[int], encoded: Sequence[NDArray[np.uint8]]) -> Verdict:
        assert self._said is not None, "the decoder is not open"
        self._inputs = graph_inputs(
            _whole(self._manifest, np.array(images)), list(encoded), self._manifest, self._settings
        )
        self._said.seek(0)
        self._said.truncate()
        size = 1 if len(images) == 1 else _BATCH
        failure = ""
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
        if failure:
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
def _stderr_of_c() -> Iterator[BinaryIO]:
    """A file that gets what is written to descriptor 2."""
    sys.stderr.flush()
    before, python = os.dup(2), sys.stderr
    with tempfile.TemporaryFile() as said, open(os.dup(before), "w", buffering=1) as shown:
        os.dup2(said.fileno(), 2)
        sys.stderr = shown
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            sys.stderr = python
