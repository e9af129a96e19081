"""Batches of a stream: files read ahead, decoded by DALI, bad ones named."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch.utils.dlpack import from_dlpack

from pipeline.data.dali import graph
from pipeline.data.dali.settings import DecodeSettings
from pipeline.data.images import BadImage, ImageSet
from pipeline.data.stream import ImageStream, Selection
from pipeline.system.files import patiently

_OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|failed to allocate", re.IGNORECASE)
_READERS = 8  # file reads in flight; they wait on the disk or the network, not on a core


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W), channels-last, normalised, float16 if so set and else float32; labels
    (B,) int64; both on the rank's device. `positions` (B,) int64 in host memory are their places in
    the stream."""

    images: torch.Tensor
    labels: torch.Tensor
    positions: np.ndarray


@dataclass(frozen=True)
class _Prepared:
    """A batch on its way into DALI: its selection and the inputs of the graph."""

    selection: Selection
    inputs: tuple[Any, ...]


class Loader:
    """Iterates over the batches of `chunks`, arrays of at most `batch_size` positions each.

    `len(loader)` is the exact number of batches. A file that cannot be read or decoded raises
    `BadImage` in place of its batch, after all earlier batches were given out.
    """

    def __init__(
        self,
        stream: ImageStream,
        chunks: Iterable[np.ndarray],
        length: int,
        batch_size: int,
        settings: DecodeSettings,
    ) -> None:
        self._stream = stream
        self._chunks = iter(chunks)
        self._length = length
        self._left = length
        self._settings = settings
        self._planners = ThreadPoolExecutor(settings.prefetch + 1, thread_name_prefix="plan")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._ahead: deque[Future[_Prepared]] = deque()
        self._in_dali: deque[_Prepared] = deque()
        self._failure: Exception | None = None
        self._pipe = self._build(self._hand_over, batch_size, settings)
        for _ in range(settings.prefetch + 1):
            self._prepare_next()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._left == 0:
            raise StopIteration
        try:
            images, labels, *means = self._pipe.run(self._stream_of_torch())
        except StopIteration:
            assert self._failure is not None, "the source ended before the loader's length"
            raise self._failure from None
        except RuntimeError as error:
            raise self._name_bad_file(self._in_dali[0], error) from error
        self._left -= 1
        prepared = self._in_dali.popleft()
        device = self._settings.device
        # Copies wait: DALI may reuse its memory as soon as these names are gone.
        pixels = from_dlpack(images.as_tensor()).to(device)
        if means:
            pixels = graph.normalise(
                pixels, from_dlpack(means[0].as_tensor()), self._settings.normalisation.std
            )
        return Batch(
            pixels.permute(0, 3, 1, 2),
            from_dlpack(labels.as_tensor()).to(device),
            prepared.selection.positions,
        )

    def _stream_of_torch(self) -> Any:
        """The stream on which a GPU batch is handed over, so that DALI reuses its memory only after
        the work that torch queued on it; None for batches in host memory."""
        if self._settings.decoder != "gpu":
            return None
        return torch.cuda.current_stream(self._settings.device)

    def close(self) -> None:
        """Ends the threads and frees DALI's memory."""
        self._planners.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self.__dict__.pop("_pipe", None)

    def _build(self, source: Any, batch_size: int, settings: DecodeSettings) -> Pipeline:
        pipe = graph.make_pipeline(source, batch_size, settings)
        try:
            pipe.build()
        except RuntimeError as error:
            if settings.decoder != "gpu" or not _OUT_OF_MEMORY.search(str(error)):
                raise
            memory = settings.memory
            raise RuntimeError(
                f"the GPU's decoders cannot set memory aside for images of {memory.width} x "
                f"{memory.height} pixels in {settings.threads} threads ({_last_reason(error)}); "
                "lower data.preallocate, data.device_padding_bytes or data.threads"
            ) from error
        return pipe

    def _prepare_next(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is not None:
            self._ahead.append(self._planners.submit(self._prepare, chunk))

    def _prepare(self, positions: np.ndarray) -> _Prepared:
        selection = self._stream.select(positions)
        # One task per reader, not per file: 25 us of Python each would add up at 8,000 files/s.
        shares = np.array_split(selection.images, min(_READERS, len(selection.images)))
        encoded = [one for share in self._readers.map(self._read, shares) for one in share]
        inputs = graph.graph_inputs(selection, encoded, self._stream.image_set, self._settings)
        return _Prepared(selection, inputs)

    def _read(self, images: np.ndarray) -> list[np.ndarray]:
        return [read_patiently(self._stream.image_set, int(image)) for image in images]

    def _hand_over(self) -> tuple[Any, ...]:
        """DALI's callback, on the training thread; everything is already prepared."""
        if not self._ahead or self._failure is not None:
            raise StopIteration
        try:
            prepared = self._ahead.popleft().result()
        except Exception as error:
            # Raised only when the batches before it have been given out.
            self._failure = error
            raise StopIteration from None
        self._prepare_next()
        self._in_dali.append(prepared)
        return prepared.inputs

    def _name_bad_file(self, prepared: _Prepared, error: Exception) -> BadImage | RuntimeError:
        """Replays a failed batch image by image, with the same boxes and decoder: DALI's message
        does not say which image failed."""
        singles = iter(range(len(prepared.selection.images)))

        def source() -> tuple[Any, ...]:
            i = next(singles)
            return tuple(
                [column[i]] if isinstance(column, list) else column[i : i + 1]
                for column in prepared.inputs
            )

        pipe = self._build(source, 1, dataclasses.replace(self._settings, prefetch=1))
        for image in prepared.selection.images:
            try:
                pipe.run()
            except RuntimeError as single:
                if _OUT_OF_MEMORY.search(str(single)):
                    break  # a good file; never to be excluded
                path = self._stream.image_set.path(int(image))
                reason = f"cannot be decoded, truncated or not an image ({_last_reason(single)})"
                return BadImage(path, reason)
        return RuntimeError(
            f"DALI failed on a batch without a bad image in it: {_last_reason(error)}; "
            "memory may be short: lower data.local_batch_size or data.prefetch_batches"
        )


def read_patiently(manifest: ImageSet, image: int) -> np.ndarray:
    """Calls `manifest.read` with retries; a file that is read but cannot be used is not retried."""
    return patiently(
        lambda: manifest.read(image),
        BadImage,
        lambda error, nap_sec: f"warning: {error}; it is read again in {nap_sec:g} s",
    )


def _last_reason(error: Exception) -> str:
    """The most informative line of DALI's report, without the batch's internal numbering."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("Current pipeline object")]
    reasons = [line for line in lines if "ailure" in line or "ailed" in line] or lines
    return re.sub(r" ?sample #\d+ ?:?", "", (reasons or ["no reason given"])[-1])[:200]
