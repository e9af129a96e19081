"""The state that training changes, as checkpoints store it; and the facts that identify a run."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pipeline.config import Config, later_defaults, names_of, plain
from pipeline.config.idle import idle_settings
from pipeline.config.training import CURVES, LENGTH
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.order import SCHEME_VERSION
from pipeline.model.network import network_facts
from pipeline.model.norm import running_statistics
from pipeline.model.recording import BatchStatistics
from pipeline.model.resnet import make_model
from pipeline.ranks.gradients import Summing, Sums
from pipeline.ranks.world import World
from pipeline.system.failure import TrainingError
from pipeline.train.ema import WeightAverage
from pipeline.train.excluding import Excluded
from pipeline.train.freezing import freeze
from pipeline.train.gpu import choose_algorithms
from pipeline.train.graphs import GraphedNetwork, require_graphs
from pipeline.train.metrics import TrainWindow, Validation
from pipeline.train.optimizer import (
    Update,
    build_optimizer,
    moments_of,
    restore_state,
    take_state,
)
from pipeline.train.precision import Precision
from pipeline.train.rank_statistics import (
    gathered_statistics,
    mean_statistics,
    portable_state,
    restore_statistics,
)
from pipeline.train.schedule import History, Schedule
from pipeline.train.warmup import ErrorWindow


def fingerprint(
    config: Config, data_hashes: dict[str, str], normalisation: Normalisation = IMAGENET
) -> dict[str, Any]:
    """The facts that must match for a checkpoint to belong to a run, as far as they have an effect
    in it (`compared`).

    They are the settings of the kinds `identity` and `kept`, without those that came later and
    have their default, and the run's length where the rate depends on it; all others are free to
    change.
    """
    facts: dict[str, Any] = {"random_scheme": SCHEME_VERSION}
    facts |= {f"data hash of {split}": digest for split, digest in data_hashes.items()}
    facts["means and deviations"] = normalisation.digest
    later = later_defaults()
    for name in names_of("identity", "kept"):
        value = plain(config.get(name))
        if name not in later or value != later[name]:
            facts[name] = value
    if config.schedule.rule in CURVES:
        facts |= {name: config.get(name) for name in LENGTH}
    # A plain network has the parameters of a residual one with shortcuts A.
    return facts | {f"model.{name}": value for name, value in network_facts(config.model).items()}


def compared(facts: dict[str, Any], config: Config) -> dict[str, Any]:
    """Those of a run's `facts` that have an effect in it, which a checkpoint must share.

    The checkpoint itself stores all, so that an error can always name both values.
    """
    idle = idle_settings(config.values())
    return {name: value for name, value in facts.items() if name not in idle}


def choose_sums(config: Config, device: torch.device) -> Sums:
    """The order of sums that run.sums asks for; on CPUs it costs nothing to fix it."""
    if config.run.sums != "auto":
        return config.run.sums
    free = device.type == "cpu" and config.optim.gradient_compression == "none"
    return "fixed" if free else "fast"


class TrainState:
    """The state that training changes, and its restore from a checkpoint. Built alike on all ranks.

    `model` holds the parameters; `forward` is the model, compiled or in CUDA graphs if asked.
    `schedule` and `excluded` are those of the run, with `classes` to tell apart, in `accumulation`
    micro-batches a step. Raises `ValueError` if what was asked for cannot run on `device`.
    """

    def __init__(
        self, config: Config, classes: int, schedule: Schedule, accumulation: int,
        excluded: Excluded, device: torch.device,
    ) -> None:  # fmt: skip
        optim = config.optim
        choose_algorithms(config, device)
        require_graphs(config, device)
        drawn = make_model(config, classes, device)
        average = None if optim.ema_decay is None else copy.deepcopy(drawn)
        self.model = freeze(drawn, config.model.frozen)
        self.precision = Precision(optim.amp, device, clip_norm=optim.clip_norm)
        self.forward: nn.Module = self.model
        if config.model.compile:
            self.forward = cast(nn.Module, torch.compile(self.model))
        elif config.model.graphs:
            self.forward = GraphedNetwork(
                self.model, partial(self.precision.autocast, cached=False), accumulation > 1
            )
        sums = choose_sums(config, device)
        self._recorded = BatchStatistics(self.model) if sums == "fixed" else None
        self.summing = Summing(
            accumulation, sums, optim.gradient_compression,
            0 if self._recorded is None else len(self._recorded.batch),
        )  # fmt: skip
        """How gradients, and BN's statistics with them, are to be summed over ranks."""
        self.ema: WeightAverage | None = None
        if average is not None:
            self.ema = WeightAverage(optim, self.model, average, alike=self._alike)
        self.optimizer = build_optimizer(
            self.model, schedule.lr(0), optim.momentum, optim.weight_decay,
            optim.decay_norm_and_bias, Update.of(optim),
            None if optim.head_lr is None else optim.head_lr / optim.base_lr,
        )  # fmt: skip
        self.window = TrainWindow(config.run.log_every_steps * accumulation, device)
        self.warmup = ErrorWindow(schedule.warmup, config.data.global_batch_size, device)
        self.excluded = excluded
        self.step = 0
        """The next step."""
        self.history: list[Validation] = []
        """Every validation so far."""

    @property
    def validated(self) -> int:
        """The step before which the last validation was; 0: none."""
        return self.history[-1].step if self.history else 0

    @property
    def best(self) -> dict[str, float]:
        """The best accuracies of all validations so far, as a line of metrics has them; there must
        be one."""
        averages = [result.ema.top1 for result in self.history if result.ema is not None]
        best = {"best_top1": max(result.top1 for result in self.history)}
        return best | ({"best_ema_top1": max(averages)} if averages else {})

    @property
    def so_far(self) -> History:
        """The history of training, for the learning rate."""
        errors = tuple(1.0 - result.top1 for result in self.history)
        return History(errors, self.warmup.end_position)

    @property
    def _alike(self) -> bool:
        """Whether all ranks have the same running statistics of BN."""
        return self._recorded is not None

    def record_statistics(self, row: Tensor) -> None:
        """Writes BN's statistics of the last micro-batch to `row`, (summing.statistics,)."""
        if self._recorded is not None:
            row.copy_(self._recorded.batch)

    def apply_statistics(self, rows: Tensor) -> None:
        """Moves BN's running statistics by those of a step's micro-batches, (count, n)."""
        if self._recorded is not None:
            self._recorded.apply(rows)

    def take(self, world: World) -> dict[str, Any]:
        """Collective. Returns its part of a checkpoint before step `step`; changes nothing. What
        an update changes, weights and moments, are the tensors themselves: `Snapshot` copies them.

        `model` holds the mean over ranks of BN's running statistics, `rank_statistics` every rank's
        own, which are restored at the same world size; where all have the same, one row.
        `ema`, if there is one, has both of the average.
        """
        statistics = gathered_statistics(self.model, world, self._alike)
        window = world.gather(self.window.sums)
        average = {} if self.ema is None else {"ema": self.ema.state(self.step, world)}
        return {
            "step": self.step,
            "history": [dataclasses.asdict(result) for result in self.history],
            "warmup": self.warmup.state(world),
            "excluded": self.excluded.state(),
            "model": portable_state(self.model, statistics),
            "rank_statistics": statistics,
            "window": window,
            **take_state(self.optimizer, self.model),
            "precision": self.precision.state_dict(),
            **average,
        }

    def restore(self, content: dict[str, Any], world: World) -> None:
        """Collective. Restores on every rank the state that `take` returned; `content` is rank 0's.

        With fast sums BN's running statistics are each rank's own again at the same world size; at
        another, and with fixed sums, their mean. The open window of metrics is each rank's own
        likewise, or the sum on rank 0. Ends by comparing digests over ranks.
        """
        self.step = content["step"]
        self.history = [Validation.from_state(result) for result in content["history"]]
        self.warmup.load(content["warmup"])
        self.excluded.load(content.get("excluded", {"train": [], "val": []}))
        self.model.load_state_dict(content["model"])
        restore_statistics(self.model, content, world, self._alike)
        if self.ema is not None:
            self.ema.load(content["ema"], world)
        window = content["window"]
        if len(window) == world.size:
            self.window.sums.copy_(window[world.rank])
        elif world.rank == 0:
            self.window.sums.copy_(window.sum(0))
        restore_state(self.optimizer, self.model, content)
        self.precision.load_state_dict(content["precision"])
        world.require_same({"state after loading": self.digest()})

    def digest(self) -> str:
        """Digest of weights, their average, the optimizer's state, loss scale and progress, 16 hex
        digits."""
        summary = hashlib.sha256()
        content = take_state(self.optimizer, self.model)
        weights = {name: p.detach().cpu() for name, p in self.model.named_parameters()}
        for name, tensor in {**weights, **moments_of(content)}.items():
            summary.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        for tensor in () if self.ema is None else self.ema.parameters():
            summary.update(tensor.cpu().contiguous().numpy().tobytes())
        progress = (self.step, self.history, self.warmup, self.excluded)
        updates = content.get("lamb", {}).get("updates")
        summary.update(repr((self.precision.state_dict(), updates, progress)).encode())
        return summary.hexdigest()[:16]

    def size_bytes(self, ranks: int) -> int:
        """Approximate size of a checkpoint: weights, the optimizer's state, and every rank's
        statistics."""
        moments = [tensor for one in self.optimizer.state.values() for tensor in one.values()]
        tensors = [*self.model.state_dict().values(), *moments]
        statistics = ranks * sum(one.nbytes for one in running_statistics(self.model))
        average = 0 if self.ema is None else self.ema.size_bytes(ranks)
        return int(sum(tensor.nbytes for tensor in tensors) + statistics + average)

    def average_statistics(self, world: World) -> tuple[list[Tensor], float]:
        """Collective. Returns the mean over ranks of BN's running statistics, and their `spread`;
        the same bits on every rank."""
        gathered = gathered_statistics(self.model, world, self._alike)
        channels = [len(one) for one in running_statistics(self.model)]
        return mean_statistics(gathered, self.model), spread(gathered, channels)


def spread(statistics: Tensor, channels: list[int]) -> float:
    """The spread of the ranks' BN statistics, in standard deviations of an activation.

    For each channel the standard deviation over ranks of the running mean, divided by the root of
    the mean running variance; of all channels the root mean square. 0 when all ranks agree. A small
    share of 1 is normal for different images; a rise says that ranks see different data, or have
    different weights.

    `statistics` (ranks, n) holds `running_statistics` side by side, whose lengths are `channels`.
    """
    parts = torch.split(statistics.double(), channels, dim=1)
    means, variances = torch.cat(parts[::2], dim=1), torch.cat(parts[1::2], dim=1)
    relative = means.var(dim=0, unbiased=False) / (variances.mean(dim=0) + 1e-5)
    return float(relative.mean().sqrt())


def require_finite(content: dict[str, Any]) -> None:
    """Raises `TrainingError` naming a weight or moment of `TrainState.take` that is not finite.

    A finite loss can have an infinite gradient, which no loss shows before the next step.
    """
    found = {**content["model"], **moments_of(content)}
    floats = [tensor for tensor in found.values() if tensor.is_floating_point()]
    if bool(torch.isfinite(get_total_norm(floats))):  # reads each once, by a few kernels; host sync
        return
    for name, tensor in found.items():  # which one; or a norm alone is beyond its type
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{name} is not finite before step {content['step']}, so that no checkpoint is "
                "written; lower optim.base_lr or lengthen schedule.warmup_epochs, and start again "
                "from the last checkpoint"
            )
