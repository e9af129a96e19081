"""BN's running statistics over ranks: everyone's own, their mean, and how checkpoints keep both.

Each rank moves its own while it trains, unless sums are in a fixed order (`run.sums`), with which
all ranks have the same. Nothing here changes the statistics of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.norm import running_statistics
from pipeline.ranks.world import World


def gathered_statistics(model: nn.Module, world: World, alike: bool) -> Tensor:
    """Collective. Returns every rank's running statistics of `model`, (world size, n) fp32 on the
    CPU; (1, n), without the collective, where they are `alike` on all ranks."""
    live = torch.cat([one.detach().flatten() for one in running_statistics(model)]).cpu()
    return live.unsqueeze(0) if alike else world.gather(live)


def mean_statistics(gathered: Tensor, model: nn.Module) -> list[Tensor]:
    """The mean over ranks of `gathered_statistics`, as `running_statistics` of `model` are; what is
    the same on all ranks is itself."""
    alike = (gathered == gathered[0]).all(0)  # a sum and a division may lose their bits
    mean = torch.where(alike, gathered[0], gathered.mean(0))
    return _unflatten(mean, running_statistics(model))


def portable_state(model: nn.Module, gathered: Tensor) -> dict[str, Tensor]:
    """The state_dict of `model`, with the mean over ranks of its running statistics.

    The parameters are the model's own, which only an update changes; buffers, which the next
    forward pass changes, are copies on the CPU.
    """
    means = mean_statistics(gathered, model)
    mean_of = {id(own): mean for own, mean in zip(running_statistics(model), means, strict=True)}
    return {
        name: value.detach()
        if isinstance(value, nn.Parameter)
        else mean_of.get(id(value), value).detach().cpu().clone()
        for name, value in model.state_dict(keep_vars=True).items()
    }


def restore_statistics(
    model: nn.Module, content: dict[str, Any], world: World, alike: bool
) -> None:
    """Gives this rank its own running statistics back, those in `content["rank_statistics"]`, if
    there were as many ranks and they need not be `alike`; else leaves them as they are."""
    gathered: Tensor = content["rank_statistics"]
    if alike or len(gathered) != world.size:
        return
    live = running_statistics(model)
    for buffer, own in zip(live, _unflatten(gathered[world.rank], live), strict=True):
        buffer.copy_(own)


def _unflatten(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
