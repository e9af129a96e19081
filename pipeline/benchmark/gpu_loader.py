"""The loader with its JPEGs decoded on the GPU, against decoding on the CPU."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.benchmark.options import LoaderOptions
from pipeline.benchmark.photos import make_photos
from pipeline.benchmark.result import Result, interleave, ratio
from pipeline.config import DataConfig
from pipeline.data.dali import DecodeSettings, Loader, available_cores, gpu_count
from pipeline.data.dali.settings import decoder_memory
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import TrainStream, train_planner

_PREFETCH = 2
_EDGE = 2 * _PREFETCH + 2  # batches before and after those that are timed: full queues


def run(options: LoaderOptions, device: torch.device) -> Result:
    """Images per second that arrive on `device` with each decoder that can run, and their ratio.

    JPEGs of ImageNet's usual size in the page cache; `options.threads` and `data` are not used:
    the loader has the threads of all cores that this process may use.
    """
    threads = available_cores()
    decoders: list[Literal["cpu", "gpu"]] = ["cpu"]
    if device.type == "cuda" and gpu_count():
        decoders.append("gpu")
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), options.files)
        config = DataConfig(image_size=options.size, val_resize=options.size)
        manifest = open_manifest(Path(folder), "train")
        stream = TrainStream(manifest, train_planner(config), seed=0)
        memory = decoder_memory(config, (manifest,))
        sides = {
            f"{decoder}_decoder_images_per_sec": _Side(
                stream,
                options,
                DecodeSettings(decoder, device, threads, _PREFETCH, memory=memory),
            ).images_per_sec
            for decoder in decoders
        }
        for measure in sides.values():  # what is done once: files, kernels, the decoder's memory
            measure()
        spreads = interleave(options.rounds, sides)
    result = Result("gpu_loader", {**vars(options), "device": str(device), "threads": threads})
    result.spreads = spreads
    if len(decoders) == 2:
        on_cpu, on_gpu = spreads.values()
        result.ratios["gpu_decoder_vs_cpu_decoder"] = ratio(on_gpu, on_cpu)
    else:
        result.figures["not_run"] = {"gpu_decoder": "DALI sees no GPU"}
    return result


class _Side:
    """One decoder. Each pass goes on in the stream of images where the last one ended."""

    def __init__(
        self, stream: TrainStream, options: LoaderOptions, settings: DecodeSettings
    ) -> None:
        self._stream, self._settings = stream, settings
        self._batch = options.batch
        self._timed = -(-options.images // options.batch)
        self._position = 0

    def images_per_sec(self) -> float:
        """Of the middle of one pass, until its batches are there on the device."""
        count = self._timed + 2 * _EDGE
        first = self._position
        self._position += count * self._batch
        chunks = (
            np.arange(start, start + self._batch, dtype=np.int64)
            for start in range(first, self._position, self._batch)
        )
        loader = Loader(self._stream, chunks, count, self._batch, self._settings)
        arrived = []
        with contextlib.closing(loader):
            for batch in loader:
                if batch.images.is_cuda:
                    torch.cuda.current_stream().synchronize()
                arrived.append(time.perf_counter())
        begin = _EDGE - 1
        return self._timed * self._batch / (arrived[begin + self._timed] - arrived[begin])
