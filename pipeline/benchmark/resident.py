"""The program's own training on images in memory: the cost of a step without the loader, and what
the program adds to a step.

The only module of the benchmarks that knows how a `Trainer` is run.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.benchmark import device as devices
from pipeline.benchmark.manifest import synthetic_manifest
from pipeline.benchmark.options import StepOptions
from pipeline.benchmark.plain import PlainTraining
from pipeline.benchmark.result import Result, by_round, interleave, ratio
from pipeline.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)
from pipeline.data.dali import Batch, Loader
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.manifest import open_manifest
from pipeline.ranks.places import Share
from pipeline.ranks.world import World
from pipeline.system.failure import StopSignal
from pipeline.system.memory import keep_freed_memory
from pipeline.train.ema import WeightAverage
from pipeline.train.feed import Feed
from pipeline.train.folder import RunFolder
from pipeline.train.loss import Objective
from pipeline.train.monitor.monitor import RunMonitor
from pipeline.train.optimizer import Update, build_optimizer
from pipeline.train.phases import PHASES, Phase, Phases
from pipeline.train.precision import Mode
from pipeline.train.trainer import Trainer

_LOG_EVERY_STEPS = 20  # as configs/demo.yaml has it
_CLASSES = 10
_ROWS = 100_000  # an epoch that no benchmark finishes
_BESIDE: dict[str, dict[str, dict[str, object]]] = {"cosine": {"schedule": {"rule": "cosine"}}}
"""Settings, by part, whose cost the loop's benchmark measures, by what they are called there."""


class _RoundPhases(Phases):
    """Phases of a whole round while they are `kept`: no line of metrics restarts them."""

    kept = False

    def restart(self) -> None:
        if not self.kept:
            super().restart()


class _Untimed(_RoundPhases):
    """Phases that only beat the heartbeat."""

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
        trainer.join_ranks()
        self._feed = Feed(loader, trainer.world, trainer.stop, self._phases)

    def run(self, steps: int) -> None:
        """Takes `steps` steps as an epoch does, including metrics."""
        self.trainer.train_epoch(self._feed, self.trainer.state.step + steps)

    def phase_seconds(self, steps: int) -> dict[str, float]:
        """Takes `steps` steps; returns seconds in each of `PHASES`. Waits for the device at the
        end."""
        self._phases.restart()
        self._phases.kept = True
        self.run(steps)
        self._phases.kept = False
        return dict(zip(PHASES, self._phases.seconds(), strict=True))

    @contextmanager
    def monitored(self) -> Iterator[None]:
        """Makes metrics be written as in a run, to the folder of the configuration's run."""
        trainer, config = self.trainer, self.trainer.config
        config.run.path.mkdir(parents=True)
        images = trainer.course.total_steps * config.data.global_batch_size
        trainer.monitor = RunMonitor(RunFolder(config.run.path), config, 0, 0, images)
        with closing(trainer.monitor):
            yield


class _ResidentLoader:
    """Yields the same few batches again and again, without end."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self._batches


def resident_batches(images: int, size: int, device: torch.device) -> list[Batch]:
    """Two batches of noise: images (B, 3, H, W) float32, channels-last, on `device`; labels
    random."""
    draw = torch.Generator().manual_seed(0)
    batches = []
    for number in range(2):
        noise = torch.randn(images, 3, size, size, generator=draw)
        labels = torch.randint(0, _CLASSES, (images,), generator=draw)
        positions = np.arange(number * images, (number + 1) * images, dtype=np.int64)
        noise = noise.to(memory_format=torch.channels_last)
        batches.append(Batch(noise.to(device), labels.to(device), positions))
    return batches


def resident_config(
    depth: int, size: int, images: int, run_dir: Path, *, ranks: int = 1, threads: int = 1
) -> Config:
    """The configuration of a run that would take steps of `images` of `size` pixels per rank."""
    return Config(
        data=DataConfig(
            global_batch_size=images * ranks,
            local_batch_size=images,
            image_size=size,
            val_resize=size,
            decode="cpu",
            threads=1,
        ),
        model=ModelConfig(depth=depth),
        schedule=ScheduleConfig(epochs=10_000, drop_epochs=()),
        run=RunConfig(
            name="benchmark",
            dir=str(run_dir),
            threads=threads,
            log_every_steps=_LOG_EVERY_STEPS,
            checkpoint_every_sec=None,
        ),
    )


def resident_training(
    config: Config, world: World, device: torch.device,
    batches: list[Batch] | None = None, classes: int = _CLASSES, timed: bool = True,
) -> Training:  # fmt: skip
    """A training of `config` over a manifest whose files do not exist: it gets `batches`, by
    default noise of its size. One step is one micro-batch."""
    data = config.data
    manifest = synthetic_manifest(_ROWS, classes, data.image_size)
    decode = choose_decoding(config.data, device, Share(cores=1, gpu=0))
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
    decode = choose_decoding(config.data, device, share, (train_set,))
    trainer = Trainer(config, world, decode, train_set, train_set, StopSignal())
    return Training(trainer, trainer.loaders.train(0))


def measure_loop(options: StepOptions, device: torch.device, result: Result) -> None:
    """Images per second of `train_epoch`, of the same without timed phases and metrics, of that
    with each of `_BESIDE`, of a bare loop, of a bare loop in row-major fp32, and of mixing and of
    the average of the weights alone, whose ratios are their shares of the step."""
    torch.set_num_threads(options.threads)
    if device.type == "cpu":
        keep_freed_memory()  # as a training does
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spreads = interleave(options.rounds, _loops(options, device, folder, stack))
    loop, each, silent, bare, fp32, mixup, cutmix, ema, *beside = spreads.values()
    result.spreads |= spreads
    result.ratios |= {
        "loop_vs_bare": ratio(loop, bare),
        "monitored_vs_silent": ratio(loop, silent),
        # As a share of the step, with a line of metrics every so many steps: a line at each step
        # stands out from a machine's noise, in which the ratio of two whole loops drowns.
        "monitoring_of_step": by_round(lambda a, b: (a / b - 1) / _LOG_EVERY_STEPS, silent, each),
        "bf16_channels_last_vs_fp32_row_major": ratio(bare, fp32),
        "mixup_of_step": ratio(loop, mixup),
        "cutmix_of_step": ratio(loop, cutmix),
        "ema_of_step": ratio(loop, ema),
        **{
            f"{name}_vs_silent": ratio(one, silent)
            for name, one in zip(_BESIDE, beside, strict=True)
        },
    }


def _loops(
    options: StepOptions, device: torch.device, folder: Path, stack: ExitStack
) -> dict[str, Callable[[], float]]:
    """Functions that measure a round of each loop; `stack` closes their files in `folder`."""
    steps, images = options.steps, options.images
    batches = resident_batches(images, options.size, device)
    config = resident_config(options.depth, options.size, images, folder, threads=options.threads)
    # The first line of the silent one is due after the benchmark.
    each_step, never = (
        dataclasses.replace(
            config, run=dataclasses.replace(config.run, name=name, log_every_steps=every)
        )
        for name, every in (("line-each-step", 1), ("silent", steps * (options.rounds + 2)))
    )
    loop, each, silent = (
        resident_training(one, World(), device, batches, timed=one is not never)
        for one in (config, each_step, never)
    )
    beside = {
        name: resident_training(_with(never, parts), World(), device, batches, timed=False)
        for name, parts in _BESIDE.items()
    }
    for monitored in (loop, each):
        stack.enter_context(monitored.monitored())
    same = [(batch.images, batch.labels) for batch in batches]
    rows = [(batch.images.contiguous(), batch.labels) for batch in batches]
    model = copy.deepcopy(loop.trainer.state.model)
    row_major = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    bare, fp32 = _bare(loop, model, config.optim.amp, same), _bare(loop, row_major, "off", rows)
    rate = partial(devices.rate, device, images)
    return {
        "loop_images_per_sec": rate(steps, loop.run),
        "line_each_step_images_per_sec": rate(steps, each.run),
        "silent_images_per_sec": rate(steps, silent.run),
        "bare_images_per_sec": rate(steps, devices.again(bare.step)),
        "fp32_row_major_images_per_sec": rate(-(-steps // 4), devices.again(fp32.step)),
        "mixup_images_per_sec": rate(steps, devices.again(_mixing(loop, batches, 0.2, 0.0))),
        "cutmix_images_per_sec": rate(steps, devices.again(_mixing(loop, batches, 0.0, 1.0))),
        "ema_images_per_sec": rate(steps, devices.again(_averaging(loop))),
        **{f"{name}_images_per_sec": rate(steps, one.run) for name, one in beside.items()},
    }


def _with(config: Config, parts: dict[str, dict[str, object]]) -> Config:
    """The configuration with other settings in some of its `parts`."""
    changed = {
        part: dataclasses.replace(getattr(config, part), **found) for part, found in parts.items()
    }
    return dataclasses.replace(config, **changed)


def _bare(
    training: Training, model: nn.Module, amp: Mode,
    batches: list[tuple[Tensor, Tensor]],
) -> PlainTraining:  # fmt: skip
    """The plainest loop, with the training's own kind of optimizer."""
    optim, lr = training.trainer.config.optim, training.trainer.lr(0)
    optimizer = build_optimizer(
        model, lr, optim.momentum, optim.weight_decay, optim.decay_norm_and_bias, Update.of(optim)
    )
    return PlainTraining(model, optimizer, amp, batches)


def _mixing(
    training: Training, batches: list[Batch], mixup: float, cutmix: float
) -> Callable[[], None]:
    """What data.mixup and data.cutmix add to a step, for one micro-batch after another; with the
    loss and its gradient, half of which a step has without mixing."""
    trainer, images = training.trainer, len(batches[0].labels)
    data = dataclasses.replace(trainer.config.data, mixup=mixup, cutmix=cutmix)
    config = dataclasses.replace(trainer.config, data=data)
    objective = Objective(config, trainer.train_set, trainer.loaders.partition, training.device)
    logits = torch.zeros(images, _CLASSES, device=training.device, requires_grad=True)
    numbers = count()

    def work() -> None:
        number = next(numbers)
        batch = batches[number % len(batches)]
        moved = dataclasses.replace(batch, positions=batch.positions + number * images)
        loss = objective.loss(logits, objective.mixed(moved)[1])
        loss.backward()  # type: ignore[no-untyped-call]

    return work


def _averaging(training: Training) -> Callable[[], None]:
    """What an update of optim.ema_decay's average at each step adds to it."""
    model = training.trainer.state.model
    average = WeightAverage(OptimConfig(ema_decay=0.999), model, copy.deepcopy(model), alike=True)
    numbers = count(1)
    return lambda: average.update(next(numbers))
