"""The exponential moving average (EMA) of the weights: a second network that follows the first.

At update n = 1, 2, ... of the average a with the weights w as the step has left them,

    a = w                        n = 1
    a = d a + (1 - d) w          n > 1, d = optim.ema_decay,
                                 or with optim.ema_warmup d = min(optim.ema_decay, 1 - n**(-2/3))

which is torch's `AveragedModel` with `get_ema_multi_avg_fn(d)` and timm's `ModelEmaV3` (gamma 1,
power 2/3), whose steps are counted from 0 at the first update. The decay is that of one update.
torchvision's recipes scale theirs by batch, steps and epochs first: 1 - (1 - d) * (batch of all
ranks) * (steps to an update) / epochs is the `optim.ema_decay` that has their effect.

BN's running means and variances are averaged like weights, as in torchvision's recipes
(`use_buffers=True`) and in timm; the counts of batches are those of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import OptimConfig
from pipeline.model.norm import swapped_statistics
from pipeline.ranks.world import World
from pipeline.train.rank_statistics import (
    gathered_statistics,
    mean_statistics,
    portable_state,
    restore_statistics,
)

_WARMUP_POWER = 2 / 3
"""timm's `warmup_power`: about 0.9 after 30 updates, 0.999 after 31,600."""


def decay_of(update: int, optim: OptimConfig) -> float:
    """What the average keeps of itself at `update`, counted from 1; the first keeps nothing."""
    assert optim.ema_decay is not None, "there is no average"
    if update == 1:
        return 0.0
    if not optim.ema_warmup:
        return optim.ema_decay
    return min(optim.ema_decay, 1.0 - math.pow(update, -_WARMUP_POWER))


class WeightAverage:
    """The EMA of the weights and running statistics of a network in training.

    Only validation calls its network, which is neither compiled nor in graphs. Updates follow the
    step alone, so that a checkpoint needs no count of them: also a step that fp16 skips is followed
    by one, of weights that have not changed, as in torchvision's and timm's trainings. So the host
    never has to know, and the average is the same on every rank. Running statistics are each rank's
    own where those of training are (`run.sums=fast`): their mean over ranks is the average of the
    mean.
    """

    def __init__(
        self, optim: OptimConfig, model: nn.Module, network: nn.Module, alike: bool
    ) -> None:  # fmt: skip
        """Follows `model`, whose tensors must keep their memory from now on.

        Args:
            optim: with an `ema_decay`.
            model: the network in training.
            network: another one of its kind on its device, to hold the average from now on.
            alike: whether all ranks have the same running statistics.
        """
        self._optim, self._network, self._alike = optim, network.eval(), alike
        theirs, own = _tensors(model), _tensors(network)
        averaged = [name for name, tensor in theirs.items() if tensor.is_floating_point()]
        counts = [name for name in theirs if name not in averaged]
        self._weights = [theirs[name] for name in averaged]
        self._averages = [own[name] for name in averaged]
        self._counts = [theirs[name] for name in counts], [own[name] for name in counts]

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Moves the average by the weights after step number `done`, counted from 1, if that is
        one with an update. Waits for nothing on the device."""
        update, rest = divmod(done, self._optim.ema_every_steps)
        if rest:
            return
        decay = decay_of(update, self._optim)
        if decay == 0.0:
            torch._foreach_copy_(self._averages, self._weights)
        else:
            torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)

    @contextmanager
    def over_ranks(self, step: int, world: World) -> Iterator[nn.Module]:
        """Collective. The network with the average before step `step`, in eval mode, with the mean
        over ranks of its running statistics until the end."""
        self._settle(step)
        gathered = gathered_statistics(self._network, world, self._alike)
        with swapped_statistics(self._network, mean_statistics(gathered, self._network)):
            yield self._network

    def state(self, step: int, world: World) -> dict[str, Any]:
        """Collective. Returns its part of a checkpoint before step `step`: `model` and
        `rank_statistics`, as the checkpoint has them of the weights themselves."""
        self._settle(step)
        gathered = gathered_statistics(self._network, world, self._alike)
        return {
            "model": portable_state(self._network, gathered),
            "rank_statistics": gathered,
        }

    def load(self, state: dict[str, Any], world: World) -> None:
        """Resumes where `state` was taken, bit for bit where the running statistics do."""
        self._network.load_state_dict(state["model"])
        restore_statistics(self._network, state, world, self._alike)

    def parameters(self) -> Iterator[Tensor]:
        """The averages of the parameters, in their order: the same on every rank."""
        return (parameter.detach() for parameter in self._network.parameters())

    def size_bytes(self, ranks: int) -> int:
        """Approximate size of `state`."""
        statistics = self._network.buffers()
        return sum(one.nbytes for one in self._averages) + ranks * sum(s.nbytes for s in statistics)

    @torch.no_grad()
    def _settle(self, step: int) -> None:
        """Before the first update the average is the weights themselves, wherever these came from;
        counts of batches always are."""
        if step < self._optim.ema_every_steps:
            torch._foreach_copy_(self._averages, self._weights)
        theirs, own = self._counts
        torch._foreach_copy_(own, theirs)


def require_updates(optim: OptimConfig, total_steps: int) -> None:
    """Raises `ValueError` if the average would never be updated in a run of `total_steps`."""
    every = optim.ema_every_steps
    if optim.ema_decay is not None and every > total_steps:
        raise ValueError(
            f"optim.ema_every_steps={every} is more than the {total_steps} steps of the run, so "
            f"that its EMA would never be updated; set it to {total_steps} or less, or "
            "optim.ema_decay=null"
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The live parameters and buffers by name."""
    return {name: value.detach() for name, value in model.state_dict().items()}
