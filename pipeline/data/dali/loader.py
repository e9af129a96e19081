"""Batches of a stream: decoded by DALI, on the rank's device, bad files named."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.data.dali import graph, heard
from pipeline.data.dali.arrival import Copied, DrawnAhead, UntilDone, Uploads
from pipeline.data.dali.reasons import cause, cause_of_one
from pipeline.data.dali.settings import DecodeSettings
from pipeline.data.dali.source import Prepared, Source
from pipeline.data.images import BadImage
from pipeline.data.index.whole import file_flaw
from pipeline.data.stream import ImageStream

_OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|failed to allocate", re.IGNORECASE)


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W), channels-last, normalised, float16 if so set and else float32; labels
    (B,) int64; both on the rank's device. `positions` (B,) int64 in host memory are their places in
    the stream."""

    images: Tensor
    labels: Tensor
    positions: np.ndarray


_Tensors = tuple[Tensor, ...]
"""Pixels (B, H, W, 3), labels (B,) and, where pixels are not normalised yet, means (B, 3)."""


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
        settings = settings.for_effects(stream.effects)
        self._batch_size, self._settings = batch_size, settings
        device = settings.device
        # A constant on the device: an upload for each batch would make the host wait.
        self._scale = torch.from_numpy(1 / settings.normalisation.std).to(device)
        self._source = Source(settings)
        self._read_by_gpu = UntilDone()
        self._uploads: Uploads | None = None
        if device.type == "cuda" and settings.decoder != "gpu":
            self._uploads = Uploads(device)
        self._ahead = DrawnAhead(self._draw_and_send)
        self._pipe: Pipeline | None = None
        self._heard = settings.decoder != "none"
        if self._heard:
            heard.begin()
        try:
            self.start(stream, chunks, length)
        except BaseException:
            self._hear_no_more()
            raise

    def start(self, stream: ImageStream, chunks: Iterable[np.ndarray], length: int) -> None:
        """Starts again by the graph that stands, on the `length` batches of `stream` at `chunks`.

        The graph is built anew only if a file made it fail or if batches were left in it. `stream`
        must have the effects of the first.
        """
        assert stream.effects == self._settings.effects, "a graph is for the effects of one stream"
        self._ahead.stop()
        if self._source.unfinished:
            self._drop_graph()
        self._length = self._left = length
        self._source.start(stream, chunks)
        if self._pipe is None:
            self._pipe = self._build(self._source, self._batch_size, self._settings)
        self._pipe.reset()  # where it saw the end; else it has not asked beyond its last batch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._left == 0:
            self._read_by_gpu.release()
            raise StopIteration
        if self._uploads is None:
            prepared, tensors = self._draw()
        else:
            prepared, copied = self._ahead.next(last=self._left == 1)
            tensors = copied.take()
        self._left -= 1
        pixels, labels, *means = tensors
        if means:
            pixels = graph.normalise(pixels, means[0], self._scale)
        return Batch(pixels.permute(0, 3, 1, 2), labels, prepared.selection.positions)

    def close(self) -> None:
        """Ends the threads and frees DALI's memory."""
        try:
            self._ahead.close()
            self._source.close()
            self._drop_graph()
        finally:
            self._hear_no_more()

    def _hear_no_more(self) -> None:
        if self._heard:
            self._heard = False
            heard.end()

    def _draw_and_send(self) -> tuple[Prepared, Copied]:
        """A batch on its way to the GPU; in the thread that is ahead."""
        assert self._uploads is not None
        prepared, tensors = self._draw()
        return prepared, self._uploads.copy(tensors)

    def _draw(self) -> tuple[Prepared, _Tensors]:
        """DALI's next batch where the graph ends."""
        outputs, reason = self._run()
        if reason is not None:
            failed = self._source.given_out()
            self._drop_graph()  # first: two decoders at once may not fit into a GPU's memory
            # Without DALI's own error, whose traceback keeps the graph in memory.
            raise self._name_bad_file(failed, reason) from RuntimeError(reason)
        if not outputs:
            assert self._source.failure is not None, "the source ended before the loader's length"
            raise self._source.failure
        prepared = self._source.given_out()
        # Views: DALI may reuse its memory as soon as they are gone.
        tensors = tuple(from_dlpack(output.as_tensor()) for output in outputs)
        if self._settings.decoder == "gpu":
            event = torch.cuda.current_stream(self._settings.device).record_event()
            self._read_by_gpu.keep(prepared, event.query)
            return prepared, tensors
        labels = torch.from_numpy(prepared.selection.labels)
        if self._settings.output != "uint8":
            return prepared, (*tensors, labels)
        means = torch.from_numpy(graph.means_of(prepared.selection, self._settings))
        return prepared, (*tensors, labels, means)

    def _run(self) -> tuple[tuple[Any, ...], str | None]:
        """The graph's outputs, none at the end of its inputs, or why it failed.

        A batch on a GPU is handed over on torch's stream, so that DALI reuses its memory only after
        the work that torch queued on it; the host does not wait for it.
        """
        assert self._pipe is not None, "the loader is closed, or has failed and was not started"
        device, on_gpu = self._settings.device, self._settings.decoder == "gpu"
        try:
            return self._pipe.run(torch.cuda.current_stream(device) if on_gpu else None), None
        except StopIteration:
            return (), None
        except RuntimeError as error:
            return (), str(error)

    def _drop_graph(self) -> None:
        """Ends DALI's threads, and only then gives up the memory that they read."""
        self._pipe = None
        self._source.forget()
        self._read_by_gpu = UntilDone()

    def _build(self, source: Any, batch_size: int, settings: DecodeSettings) -> Pipeline:
        pipe = graph.make_pipeline(source, batch_size, settings)
        try:
            pipe.build()
        except RuntimeError as error:
            if settings.decoder != "gpu" or not _OUT_OF_MEMORY.search(str(error)):
                raise
            memory, reason = settings.memory, cause(str(error))
            raise RuntimeError(
                f"the GPU's decoders cannot set memory aside for images of {memory.width} x "
                f"{memory.height} pixels in {settings.threads} threads ({reason}); "
                "lower data.preallocate, data.device_padding_bytes or data.threads"
            ) from error
        return pipe

    def _name_bad_file(self, failed: Prepared, report: str) -> BadImage | RuntimeError:
        """Replays a failed batch image by image, with the same boxes and decoder: DALI's message
        does not say which image failed."""
        singles = failed.singles()
        kept = []  # DALI reads their memory

        def source() -> tuple[Any, ...]:
            kept.append(graph.as_lists(next(singles)))
            return kept[-1]

        pipe = self._build(source, 1, dataclasses.replace(self._settings, prefetch=1))
        for index in range(len(failed.selection.images)):
            try:
                pipe.run()
            except RuntimeError as single:
                if _OUT_OF_MEMORY.search(str(single)):
                    break  # a good file; never to be excluded
                return self._bad_image(failed, index, cause_of_one(str(single)))
        return RuntimeError(
            f"DALI failed on a batch without a bad image in it: {cause(report)}; "
            "memory may be short: lower data.local_batch_size or data.prefetch_batches"
        )

    def _bad_image(self, failed: Prepared, index: int, said: str) -> BadImage:
        """The error for image `index` of a batch, of which DALI `said` what went wrong."""
        image = int(failed.selection.images[index])
        encoded = failed.inputs[0][index] if self._settings.decoder != "none" else None
        # DALI gives only the fact; what is missing or wrong in the file says more.
        flaw = None if encoded is None else file_flaw(encoded.tobytes())
        reason = f"it {flaw}" if flaw else said
        return BadImage(failed.image_set.path(image), f"cannot be decoded: {reason}")
