"""Settings of plan execution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from pipeline.config import DataConfig
from pipeline.data.effects import NOTHING, Effects
from pipeline.data.images import ImageSet
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.ranks.places import Share


@dataclass(frozen=True)
class DecoderMemory:
    """Memory that the GPU's decoders reserve at the start, so that no image makes them grow.

    `width` and `height` in pixels are for the JPEG engine (0: none known); the paddings in bytes
    are for each thread of the rest, two buffers of `host_padding_bytes`. Defaults are DALI's.
    """

    width: int = 0
    height: int = 0
    device_padding_bytes: int = 16 * 2**20
    host_padding_bytes: int = 8 * 2**20


@dataclass(frozen=True)
class DecodeSettings:
    """How a loader executes plans. `decoder` is where JPEGs are decoded ("none": the images are
    pixels already), `device` where batches are handed out, `threads` are DALI's CPU threads,
    `prefetch` the batches that wait ready.

    `output` is what DALI writes: float32 or float16, normalised, or uint8, which the loader
    normalises on `device`. `hw_decoder_load`, the JPEG engine's share (0..1), and `memory` are of
    the GPU decoder alone. A mean image in `normalisation` is subtracted from every view, and every
    view must have its shape: use `for_shape` where that is not certain. `effects` are those of the
    stream that a graph is for (`for_effects`), and a loader sets them itself.
    """

    decoder: Literal["cpu", "gpu", "none"]
    device: torch.device
    threads: int
    prefetch: int = 2
    output: Literal["float32", "float16", "uint8"] = "float32"
    hw_decoder_load: float = 0.65
    memory: DecoderMemory = field(default_factory=DecoderMemory)
    normalisation: Normalisation = IMAGENET
    effects: Effects = NOTHING

    def for_effects(self, effects: Effects) -> DecodeSettings:
        """The settings for the views of a stream with these effects."""
        return dataclasses.replace(self, effects=effects)

    def for_shape(self, shape: tuple[int, int] | None) -> DecodeSettings:
        """The settings for a loader whose views all have height and width `shape` (None: they
        vary).

        A mean image of another shape gives way to the channel means.
        """
        normalisation = self.normalisation.for_shape(shape)
        return dataclasses.replace(self, normalisation=normalisation)


def gpu_count() -> int:
    """Number of GPUs that DALI can use here; 0 without a driver."""
    from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined]

    return int(GetCUDADeviceCount())


_GPU_DECODER_THREADS = 8  # published configurations have 6 to 8 for each GPU


def choose_decoding(
    settings: DataConfig,
    device: torch.device,
    share: Share,
    data: Sequence[ImageSet] = (),
    normalisation: Normalisation = IMAGENET,
) -> DecodeSettings:
    """The settings with which this rank decodes and normalises the images of `data`.

    Raises `ValueError` for a GPU decoder without a GPU.
    """
    has_gpu = device.type == "cuda" and gpu_count() > 0
    if settings.decode == "gpu" and not has_gpu:
        raise ValueError(
            "data.decode=gpu needs an NVIDIA GPU that run.device uses; set data.decode=cpu or auto"
        )
    encoded = settings.dataset != "cifar-10"
    on_gpu = encoded and has_gpu and settings.decode != "cpu"
    return DecodeSettings(
        "gpu" if on_gpu else "cpu" if encoded else "none",
        device,
        settings.threads or (min(share.cores, _GPU_DECODER_THREADS) if on_gpu else share.cores),
        settings.prefetch_batches or (3 if on_gpu else 2),
        settings.output,
        settings.hw_decoder_load,
        decoder_memory(settings, data),
        normalisation,
    )


def decoder_memory(config: DataConfig, data: Sequence[ImageSet]) -> DecoderMemory:
    """Memory that GPU decoders reserve for the images of `data`, or as `config` says.

    The padding is 6 bytes on the device and 4 on the host for each pixel of the largest image, room
    for its three colours and a working copy; an assumption, not yet measured on a GPU. It is never
    less than DALI's own defaults.
    """
    if config.preallocate is None:
        widths = np.concatenate([np.zeros(1, np.int64), *(one.widths for one in data)])
        heights = np.concatenate([np.zeros(1, np.int64), *(one.heights for one in data)])
        width, height = int(widths.max()), int(heights.max())
        pixels = int((widths * heights).max())
    else:
        width, height = config.preallocate
        pixels = width * height
    least = DecoderMemory()
    device, host = config.device_padding_bytes, config.host_padding_bytes
    return DecoderMemory(
        width,
        height,
        max(least.device_padding_bytes, 6 * pixels) if device is None else device,
        max(least.host_padding_bytes, 4 * pixels) if host is None else host,
    )
