"""The program's own training on images that lie in memory: what a step costs without the loader.

The one place of the benchmarks that knows how a `Trainer` is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch

from pipeline.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig
from pipeline.data.dali import Batch, Loader
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.arrow_file import write_manifest
from pipeline.data.index.manifest import Manifest, open_manifest, read_manifest
from pipeline.data.index.scan import Rows
from pipeline.ranks.places import Share
from pipeline.ranks.world import World
from pipeline.system.failure import StopSignal
from pipeline.train.feed import Feed
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.monitor import RunMonitor
from pipeline.train.phases import PHASES, Phase, Phases
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


class _RoundPhases(Phases):
    """Phases of a whole round while they are `kept`: no line of metrics begins them anew."""

    kept = False

    def restart(self) -> None:
        if not self.kept:
            super().restart()


class _Untimed(_RoundPhases):
    """Phases that only beat the heart."""

    def __call__(self, phase: Phase, step: int | None = None) -> AbstractContextManager[None]:
        self._heartbeat.beat(phase, step)
        return nullcontext()


class Training:
    """A trainer's own loop over the batches of `loader`.

    Not `timed`: the phases of its steps are not looked at.
    """

    def __init__(self, trainer: Trainer, loader: Loader, timed: bool = True) -> None:
        self.trainer, self.device = trainer, trainer.decode.device
        kind = _RoundPhases if timed else _Untimed
        self._phases = trainer.phases = kind(trainer.world.heartbeat, self.device)
        self._feed = Feed(loader, trainer.world, trainer.stop, phases=self._phases)

    def run(self, steps: int) -> None:
        """Takes `steps` steps as an epoch does, metrics included."""
        self.trainer.train_epoch(self._feed, self.trainer.state.step + steps)

    def phase_seconds(self, steps: int) -> dict[str, float]:
        """Takes `steps` steps; seconds in each of `PHASES`. Waits for the device at the end."""
        self._phases.restart()
        self._phases.kept = True
        self.run(steps)
        self._phases.kept = False
        return dict(zip(PHASES, self._phases.seconds(), strict=True))

    @contextmanager
    def monitored(self) -> Iterator[None]:
        """Has the metrics written as a run does, into the folder of the configuration's run."""
        trainer, config = self.trainer, self.trainer.config
        config.run.path.mkdir(parents=True)
        images = trainer.course.total_steps * config.data.global_batch_size
        trainer.monitor = RunMonitor(RunFolder(config.run.path), config, 0, 0, images)
        with closing(trainer.monitor):
            yield


class _ResidentLoader:
    """Gives the same few batches again and again, without end."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self._batches


def resident_batches(images: int, size: int, device: torch.device, count: int = 2) -> list[Batch]:
    """Batches of noise: images (B, 3, H, W) float32, channels-last, on `device`; labels random."""
    draw = torch.Generator().manual_seed(0)
    batches = []
    for number in range(count):
        noise = torch.randn(images, 3, size, size, generator=draw)
        labels = torch.randint(0, _CLASSES, (images,), generator=draw)
        positions = np.arange(number * images, (number + 1) * images, dtype=np.int64)
        noise = noise.to(memory_format=torch.channels_last)
        batches.append(Batch(noise.to(device), labels.to(device), positions))
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


def resident_training(
    config: Config, world: World, device: torch.device, folder: Path,
    batches: list[Batch] | None = None, classes: int = _CLASSES, timed: bool = True,
) -> Training:  # fmt: skip
    """A training of `config` over a manifest whose files do not exist: it gets `batches`, by
    default those of its size. One step is one micro-batch. Writes only into `folder`."""
    data = config.data
    manifest = _manifest(folder / f"rank{world.rank}.arrow", data.image_size, classes)
    decode = choose_decoding(config, device, Share(cores=1, gpu=0))
    trainer = Trainer(config, world, decode, manifest, manifest, StopSignal())
    if batches is None:
        batches = resident_batches(data.local_batch_size, data.image_size, device)
    return Training(trainer, cast(Loader, _ResidentLoader(batches)), timed)


def training_from_files(
    root: Path, config: Config, world: World, device: torch.device, folder: Path
) -> Training:
    """Collective. A training of `config` that reads the data set `root`; writes only into
    `folder`."""
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, root=str(root), decode="auto")
    )
    world.on_rank0(lambda: len(open_manifest(root, "train", folder)))  # scans the tree once
    train_set = open_manifest(root, "train", folder)
    share = Share(cores=1, gpu=device.index or 0)
    decode = choose_decoding(config, device, share, (train_set,))
    trainer = Trainer(config, world, decode, train_set, train_set, StopSignal())
    return Training(trainer, trainer.loaders.train(0))


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
