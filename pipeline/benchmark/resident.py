"""A real `Trainer` whose images already lie in memory: what a step costs without the loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig
from pipeline.data.dali import Batch
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.arrow_file import write_manifest
from pipeline.data.index.manifest import Manifest, read_manifest
from pipeline.data.index.scan import Rows
from pipeline.ranks.places import Share
from pipeline.ranks.stop import StopSignal
from pipeline.ranks.world import World
from pipeline.train.trainer import Trainer

LOG_EVERY_STEPS = 20  # as configs/demo.yaml has it
_CLASSES = 10
_ROWS = 100_000  # an epoch no benchmark gets to the end of


@dataclass(frozen=True)
class Workload:
    """One step's work: `images` per rank, `size` pixels a side, ResNet-`depth`."""

    depth: int
    size: int
    images: int
    amp: Literal["off", "bf16", "fp16"] = "bf16"


class ResidentLoader:
    """Gives the same few batches again and again, without end."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self._batches


def resident_batches(work: Workload, device: torch.device, count: int = 2) -> list[Batch]:
    """Batches of noise: images (B, 3, H, W) float32, channels-last, on `device`; labels random."""
    draw = torch.Generator().manual_seed(0)
    batches = []
    for number in range(count):
        images = torch.randn(work.images, 3, work.size, work.size, generator=draw)
        labels = torch.randint(0, _CLASSES, (work.images,), generator=draw)
        positions = np.arange(number * work.images, (number + 1) * work.images, dtype=np.int64)
        images = images.to(memory_format=torch.channels_last)
        batches.append(Batch(images.to(device), labels.to(device), positions))
    return batches


def resident_config(work: Workload, world_size: int, run_dir: Path, threads: int) -> Config:
    """The configuration of a run that would take these steps."""
    return Config(
        data=DataConfig(
            global_batch_size=work.images * world_size,
            local_batch_size=work.images,
            image_size=work.size,
            val_resize=work.size,
            decode="cpu",
            threads=1,
        ),
        model=ModelConfig(depth=work.depth),
        optim=OptimConfig(amp=work.amp),
        schedule=ScheduleConfig(epochs=10_000, drop_epochs=()),
        run=RunConfig(
            name="benchmark",
            dir=str(run_dir),
            threads=threads,
            log_every_steps=LOG_EVERY_STEPS,
            checkpoint_every_sec=None,
        ),
    )


def resident_job(
    config: Config, world: World, device: torch.device, folder: Path, classes: int = _CLASSES
) -> Trainer:
    """A job of `config` over a manifest whose files do not exist; writes only into `folder`."""
    path = folder / f"rank{world.rank}.arrow"
    manifest = _manifest(path, config.data.image_size, classes)
    decode = choose_decoding(config, device, Share(cores=1, gpu=0))
    return Trainer(config, world, decode, manifest, manifest, StopSignal())


def _manifest(path: Path, size: int, classes: int) -> Manifest:
    sides = np.full(_ROWS, size, dtype=np.int32)
    rows = Rows(
        classes=[f"class{label}" for label in range(classes)],
        files=[b"class0/%d.JPEG" % image for image in range(_ROWS)],
        labels=np.zeros(_ROWS, dtype=np.int32),
        lengths=np.ones(_ROWS, dtype=np.int64),
        widths=sides,
        heights=sides,
    )
    write_manifest(path, rows)
    return read_manifest(path, "train", path.parent)
