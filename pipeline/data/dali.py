"""Executes plans with DALI. The only module that imports DALI.

One graph for training and validation, CPU and GPU: bytes -> decode the enclosing integer box ->
resize the fractional box -> mirror and normalise -> (B, 3, H, W) channels-last.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch.utils.dlpack import from_dlpack

from pipeline.data.augment import Plan
from pipeline.data.manifest import BadImage, Manifest
from pipeline.data.stream import ImageStream, Selection

# ImageNet's channel statistics on the 0..255 scale, as every reference implementation uses them.
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32) * 255

log = logging.getLogger("trainyard")

_OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|failed to allocate", re.IGNORECASE)
_READ_AGAIN_SEC = (0.1, 0.5, 2.0)  # naps before a refused read is tried again
_READERS = 8  # file reads in flight; they wait on the disk or the network, not on a core


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W) float32, channels-last, normalised; labels (B,) int64; both on the
    rank's device. `positions` (B,) int64 in host memory says where in the stream they stand."""

    images: torch.Tensor
    labels: torch.Tensor
    positions: np.ndarray


@dataclass(frozen=True)
class DecodeSettings:
    """How a loader executes plans. `decoder` is where JPEGs are decoded, `device` where batches
    are handed out, `threads` are DALI's CPU threads, `prefetch` the batches that wait ready."""

    decoder: Literal["cpu", "gpu"]
    device: torch.device
    threads: int
    prefetch: int = 2


def gpu_count() -> int:
    """GPUs that DALI can use here; 0 without a driver."""
    from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined]

    return int(GetCUDADeviceCount())


@dataclass(frozen=True)
class _Prepared:
    """A batch on its way into DALI: what it is, and the inputs of the graph."""

    selection: Selection
    inputs: tuple[Any, ...]


def graph_inputs(selection: Selection, encoded: list[np.ndarray], manifest: Manifest) -> Any:
    """The graph's inputs for one batch, in the order of `make_pipeline`'s source.

    The decoder gets the integer box around the planned one plus a margin of
    ceil(max(1, box / output)) pixels, so that the antialiasing filter sees its neighbours; the
    fractional box goes to the resize, relative to the decoded part, and is at least 1 px.
    """
    plan: Plan = selection.plan
    sizes = np.stack([manifest.heights[selection.images], manifest.widths[selection.images]], 1)
    start, extent = plan.boxes[:, :2].astype(np.float64), plan.boxes[:, 2:].astype(np.float64)
    extent = np.maximum(extent, 1.0)
    margin = np.ceil(np.maximum(1.0, extent / plan.size))
    low = np.maximum(np.floor(start) - margin, 0).astype(np.int32)
    high = np.minimum(np.ceil(start + extent) + margin, sizes).astype(np.int32)
    begin = (start - low).astype(np.float32)
    return (
        encoded,
        low,
        high - low,
        begin,
        begin + extent.astype(np.float32),
        plan.flips.astype(np.int32),
        (MEAN - plan.offsets).astype(np.float32),
        np.ascontiguousarray(selection.labels),
    )


def make_pipeline(
    source: Any, batch_size: int, size: int, decoder: str, threads: int, device_id: int | None,
    prefetch: int,
) -> Pipeline:  # fmt: skip
    """The graph, not yet built; `source()` gives the tuple of `graph_inputs` for each batch.

    With `device_id=None` and `decoder="gpu"` it can be serialised and checked, not run.
    Downstream operators follow the decoder's device.
    """
    pipe = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,  # batches are fresh memory and stay valid; also 17% faster
    )
    with pipe:
        encoded, low, extent, begin, end, flips, means, labels = fn.external_source(
            source=source, num_outputs=8, batch=True
        )
        images = fn.decoders.image_slice(
            encoded,
            low,
            extent,
            axis_names="HW",
            normalized_anchor=False,
            normalized_shape=False,
            output_type=types.RGB,
            adjust_orientation=False,  # as Pillow and torchvision; EXIF would swap the box's axes
            device="mixed" if decoder == "gpu" else "cpu",
        )
        images = fn.resize(
            images,
            size=[size, size],
            roi_start=begin,
            roi_end=end,
            roi_relative=False,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        # The colour offset rides on the mean: 8% of the loader's time, 21% as an addition.
        images = fn.crop_mirror_normalize(
            images,
            mirror=flips,
            mean=means,
            std=STD.tolist(),
            dtype=types.FLOAT,
            output_layout="HWC",
        )
        pipe.set_outputs(images, labels)
    return pipe


class Loader:
    """Iterates over the batches of `chunks`, arrays of positions of one length each.

    `len(loader)` is the exact number of batches. A file that cannot be read or decoded raises
    `BadImage` in place of its batch, after all earlier batches were given out.
    """

    def __init__(
        self,
        stream: ImageStream,
        chunks: Iterable[np.ndarray],
        length: int,
        batch_size: int,
        size: int,
        settings: DecodeSettings,
    ) -> None:
        self._stream = stream
        self._chunks = iter(chunks)
        self._length = length
        self._left = length
        self._size = size
        self._settings = settings
        self._planners = ThreadPoolExecutor(settings.prefetch + 1, thread_name_prefix="plan")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._ahead: deque[Future[_Prepared]] = deque()
        self._in_dali: deque[_Prepared] = deque()
        self._failure: Exception | None = None
        self._pipe = self._build(self._hand_over, batch_size, settings.prefetch)
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
            images, labels = self._pipe.run(self._stream_of_torch())
        except StopIteration:
            assert self._failure is not None, "the source ended before the loader's length"
            raise self._failure from None
        except RuntimeError as error:
            raise self._name_bad_file(self._in_dali[0], error) from error
        self._left -= 1
        prepared = self._in_dali.popleft()
        device = self._settings.device
        # Copies wait: DALI may reuse its memory as soon as these names are gone.
        return Batch(
            from_dlpack(images.as_tensor()).permute(0, 3, 1, 2).to(device),
            from_dlpack(labels.as_tensor()).to(device),
            prepared.selection.positions,
        )

    def _stream_of_torch(self) -> Any:
        """Where a GPU batch is handed over, so that DALI reuses its memory only after the work
        that torch queued on it; None for batches in host memory."""
        if self._settings.decoder != "gpu":
            return None
        return torch.cuda.current_stream(self._settings.device)

    def close(self) -> None:
        """Ends the threads and frees DALI's memory."""
        self._planners.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self.__dict__.pop("_pipe", None)

    def _build(self, source: Any, batch_size: int, prefetch: int) -> Pipeline:
        settings = self._settings
        device_id = settings.device.index if settings.decoder == "gpu" else None
        pipe = make_pipeline(
            source, batch_size, self._size, settings.decoder, settings.threads, device_id, prefetch
        )
        pipe.build()
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
        return _Prepared(selection, graph_inputs(selection, encoded, self._stream.manifest))

    def _read(self, images: np.ndarray) -> list[np.ndarray]:
        return [read_patiently(self._stream.manifest, int(image)) for image in images]

    def _hand_over(self) -> tuple[Any, ...]:
        """DALI's callback, on the training thread: everything was prepared before."""
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
        """Replays a failed batch image by image, same boxes and decoder: DALI's message does not
        say which one it was."""
        singles = iter(range(len(prepared.selection.images)))

        def source() -> tuple[Any, ...]:
            i = next(singles)
            return tuple(
                [column[i]] if isinstance(column, list) else column[i : i + 1]
                for column in prepared.inputs
            )

        pipe = self._build(source, 1, 1)
        for image in prepared.selection.images:
            try:
                pipe.run()
            except RuntimeError as single:
                if _OUT_OF_MEMORY.search(str(single)):
                    break  # a good file; never to be excluded
                path = self._stream.manifest.path(int(image))
                reason = f"cannot be decoded, truncated or not an image ({_last_reason(single)})"
                return BadImage(path, reason)
        return RuntimeError(
            f"DALI failed on a batch without a bad image in it: {_last_reason(error)}; "
            "memory may be short: lower data.local_batch_size or data.prefetch_batches"
        )


def read_patiently(manifest: Manifest, image: int) -> np.ndarray:
    """`manifest.read`, tried again when the file system refuses: servers fail over, mounts hiccup.

    A file that is read but cannot be used is not read again.
    """
    for nap_sec in _READ_AGAIN_SEC:
        try:
            return manifest.read(image)
        except BadImage as error:
            if not isinstance(error.__cause__, OSError):
                raise
            log.warning("warning: %s; it is read again in %g s", error, nap_sec)
            time.sleep(nap_sec)
    return manifest.read(image)


def _last_reason(error: Exception) -> str:
    """The line of DALI's report that says most, without the batch's internal numbering."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("Current pipeline object")]
    reasons = [line for line in lines if "ailure" in line or "ailed" in line] or lines
    return re.sub(r" ?sample #\d+ ?:?", "", (reasons or ["no reason given"])[-1])[:200]


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))
