"""One training run wired together: every part, and where it stands."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import nn

from pipeline.config import Config
from pipeline.data.batches import Partition, epochs_done, split_global_batch
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.exclusion import Exclusions
from pipeline.data.images import ImageSet
from pipeline.data.stream import TrainStream, train_planner
from pipeline.model.backends import choose_backend
from pipeline.model.network import build_network
from pipeline.model.norm import norm_layers
from pipeline.ranks.stop import StopSignal
from pipeline.ranks.world import World
from pipeline.system.machine import versions
from pipeline.train.checkpoint import CheckpointFolder
from pipeline.train.excluding import recover
from pipeline.train.feed import Feed
from pipeline.train.folder import RunFolder
from pipeline.train.loaders import ValidationLoader, open_val_loader
from pipeline.train.metrics import TrainWindow, Validation
from pipeline.train.monitor.monitor import Monitor
from pipeline.train.optimizer import build_optimizer
from pipeline.train.phases import Phases
from pipeline.train.precision import Precision
from pipeline.train.profile import Profile
from pipeline.train.schedule import History, make_schedule, run_length
from pipeline.train.state import fingerprint


@dataclass
class Progress:
    """Where training stands: all else follows from this and the configuration."""

    step: int = 0
    """The next step."""
    history: list[Validation] = field(default_factory=list)
    """Every validation so far."""
    warmup_end: int | None = None
    """The first step after schedule.warmup_until_error; None: not yet, or there is none."""
    warmup_hits: int = 0
    """Right answers of all ranks in the open window of that warm-up, when it was restored."""
    excluded: Exclusions = field(default_factory=Exclusions)
    """Training images that the run goes on without."""
    excluded_val: tuple[int, ...] = ()
    """Validation images that count as wrong unseen, rising."""


class Job:
    """The parts of one run on this rank. Built alike on all ranks; needs no collective.

    `forward` is the model, compiled if asked; `model` holds the parameters. Raises `ValueError`
    for a setting that does not fit the data or the number of ranks.
    """

    def __init__(
        self, config: Config, world: World, decode: DecodeSettings, train_set: ImageSet,
        val_set: ImageSet, stop: StopSignal,
    ) -> None:  # fmt: skip
        self.config, self.world, self.stop = config, world, stop
        self.monitor = Monitor()  # rank 0 gets one that writes
        self.profile = Profile()  # of no step, unless --profile asks for some
        self.train_set, self.val_set = train_set, val_set
        data = config.data
        micro_batch, self.accumulation = split_global_batch(
            data.global_batch_size, data.local_batch_size, world.size
        )
        self.partition = Partition(data.global_batch_size, micro_batch, world.rank, world.size)
        self.total_steps = run_length(config.schedule, len(train_set), data.global_batch_size)
        self.schedule = make_schedule(config, len(train_set))
        planner = train_planner(data, decode.normalisation)
        self.stream = TrainStream(train_set, planner, config.run.seed)
        self.decode, device = decode, decode.device
        self.model = make_model(config, len(train_set.classes), device)
        self.forward = self.model
        if config.model.compile:
            self.forward = cast(nn.Module, torch.compile(self.model))
        self.optimizer = build_optimizer(
            self.model, self.schedule.lr(0), config.optim.momentum,
            config.optim.weight_decay, config.optim.decay_norm_and_bias,
        )  # fmt: skip
        self.averager = world.average_gradients(self.model, config.optim.gradient_compression)
        self.precision = Precision(config.optim.amp, device)
        self.phases = Phases(world.heartbeat, device)
        self.window = TrainWindow(config.run.log_every_steps * self.accumulation, device)
        self.checkpoints = CheckpointFolder(
            RunFolder(config.run.path).checkpoints, config.run.keep_checkpoints
        )
        self.progress = Progress()
        self.warmup_hits = torch.zeros(1, dtype=torch.int64, device=device)  # since restored
        self.train_top1 = 0.0  # of the last line of metrics
        self.versions = versions()
        hashes = {"train": train_set.digest, "val": val_set.digest}
        self.fingerprint = fingerprint(config, hashes, decode.normalisation)
        self._saved_at = time.monotonic()
        self.cores: int | None = None
        """Of this rank; None: not known."""
        self.images_shown_epoch: int | None = None
        """Epoch whose first images TensorBoard has from this start."""

    @property
    def facts(self) -> dict[str, object]:
        """What every rank must have decided alike."""
        norm = next(norm_layers(self.model))
        return {
            "steps": self.total_steps,
            "accumulation": self.accumulation,
            "device": self.decode.device.type,
            "decoder": self.decode.decoder,
            "normalisation": self.decode.normalisation.digest,
            "norm layer": getattr(norm, "backend", type(norm).__name__),
        }

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train or to validate."""
        return self.progress.step >= self.total_steps and not self.validation_due

    @property
    def position(self) -> int:
        """Images consumed by the whole job before the next step."""
        return self.progress.step * self.config.data.global_batch_size

    def lr(self, step: int) -> float:
        """The learning rate of `step`, after what training has shown so far."""
        batch, end = self.config.data.global_batch_size, self.progress.warmup_end
        errors = tuple(1.0 - result.top1 for result in self.progress.history)
        return self.schedule.lr(
            step * batch, History(errors, warmup_end=None if end is None else end * batch)
        )

    @property
    def epoch(self) -> int:
        """Epoch, from 0, of the step before the next one."""
        before = max(0, self.progress.step - 1) * self.config.data.global_batch_size
        return before // len(self.train_set)

    def epochs_done(self, next_step: int) -> int:
        return epochs_done(next_step, len(self.train_set), self.config.data.global_batch_size)

    @property
    def validation_due(self) -> bool:
        """Whether the run stands at the end of an epoch that has not been validated."""
        step, history = self.progress.step, self.progress.history
        validated = history[-1].step if history else 0
        finished = step == self.total_steps and validated != step
        return finished or self.epochs_done(step) > self.epochs_done(validated)

    def next_validation_step(self) -> int:
        """The first step t > now after which an epoch is complete, or the run is."""
        batch = self.config.data.global_batch_size
        images = (self.epochs_done(self.progress.step) + 1) * len(self.train_set)
        return min(-(-images // batch), self.total_steps)

    def place(self, counted: Validation) -> Validation:
        """A validation's counts, with where in the training they stand."""
        return dataclasses.replace(
            counted, epoch=self.epoch, step=self.progress.step, position=self.position
        )

    def save_is_due(self) -> bool:
        """Whether rank 0's clock asks for a checkpoint; the ranks agree on it."""
        every = self.config.run.checkpoint_every_sec
        waited = time.monotonic() - self._saved_at
        return self.world.rank == 0 and every is not None and waited >= every

    def saved(self) -> None:
        """Starts the time to the next checkpoint."""
        self._saved_at = time.monotonic()

    def apply_exclusions(self) -> None:
        """Makes loaders that are opened from now on leave out what `progress` says."""
        self.stream.exclusions = self.progress.excluded

    def feed(self) -> Feed:
        """This rank's batches from the next step on, past bad images if so configured."""
        loader = self.train_loader()
        return Feed(loader, self.world, self.stop, partial(recover, self), self.phases)

    def train_loader(self, first: int | None = None, micro_batch: int = 0) -> Loader:
        """This rank's micro-batches from number `micro_batch` of step `first`, by default the next
        one, to the end."""
        first, last = self.progress.step if first is None else first, self.total_steps
        left = (last - first) * self.accumulation - micro_batch

        def chunks() -> Iterator[np.ndarray]:
            for number in range(micro_batch, micro_batch + left):
                step, micro = divmod(number, self.accumulation)
                yield self.partition.positions(first + step, micro)

        return Loader(
            self.stream, chunks(), left,
            self.partition.micro_batch_size, self.decode,
        )  # fmt: skip

    def val_loader(self) -> ValidationLoader:
        """This rank's part of the validation set."""
        excluded = frozenset(self.progress.excluded_val)
        return open_val_loader(self.config, self.val_set, self.world, self.decode, excluded)

    def start_clock(self) -> None:
        """Begins to measure speed and times: what came before was no training."""
        self.window.start_clock()
        self.phases.restart()
        self.world.heartbeat.take_longest_sec()


def make_model(config: Config, classes: int, device: torch.device) -> nn.Module:
    """The network with its initial weights, drawn on the CPU so that every device starts alike.

    Raises `ValueError` if the norm backend that was asked for cannot run on `device`.
    """
    norm = choose_backend(config.model.norm, device, config.optim.amp)
    torch.manual_seed(config.run.seed)
    return build_network(config.model, classes, norm).to(device)
