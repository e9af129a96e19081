"""What can be set about executing plans, and what every graph has in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nvidia.dali import Pipeline, types

from pipeline.data.normalisation import IMAGENET, Normalisation


@dataclass(frozen=True)
class DecoderMemory:
    """What the GPU's decoders set aside at the start, so that no image makes them grow.

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
    view must have its shape: use `for_shape` where that is not certain.
    """

    decoder: Literal["cpu", "gpu", "none"]
    device: torch.device
    threads: int
    prefetch: int = 2
    output: Literal["float32", "float16", "uint8"] = "float32"
    hw_decoder_load: float = 0.65
    memory: DecoderMemory = field(default_factory=DecoderMemory)
    normalisation: Normalisation = IMAGENET

    def for_shape(self, shape: tuple[int, int] | None) -> DecodeSettings:
        """These for a loader whose views all have height and width `shape` (None: they vary).

        A mean image of another shape gives way to the channel means.
        """
        normalisation = self.normalisation.for_shape(shape)
        return dataclasses.replace(self, normalisation=normalisation)


def gpu_count() -> int:
    """GPUs that DALI can use here; 0 without a driver."""
    from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined]

    return int(GetCUDADeviceCount())


def new_pipeline(batch_size: int, settings: DecodeSettings) -> Pipeline:
    """A pipeline without operators."""
    return Pipeline(
        batch_size=batch_size,
        num_threads=settings.threads,
        device_id=settings.device.index if settings.decoder == "gpu" else None,
        prefetch_queue_depth=settings.prefetch,
        exec_dynamic=True,  # batches are fresh memory and stay valid; also 17% faster
    )


def output_arguments(settings: DecodeSettings) -> dict[str, Any]:
    """How `crop_mirror_normalize` writes normalised pixels, its means aside."""
    return {
        "std": settings.normalisation.std.tolist(),
        "dtype": types.FLOAT16 if settings.output == "float16" else types.FLOAT,
        "output_layout": "HWC",
    }
