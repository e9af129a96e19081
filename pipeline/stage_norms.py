"""Norms of gradients and weights by stage of the network: stem, layer1, layer2, ..., fc."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pipeline.optimizer import gradient_norm

_STEM = ("conv1", "bn1")


def _stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    stages: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        first = name.partition(".")[0]
        stages.setdefault("stem" if first in _STEM else first, []).append(parameter)
    return stages


def norm_names(model: nn.Module) -> list[str]:
    """The names of `norms`, as metrics.jsonl has them."""
    stages = _stages(model)
    by_stage = [f"{kind}_norm_{stage}" for kind in ("gradient", "weight") for stage in stages]
    return ["gradient_norm", *by_stage]


@torch.no_grad()
def norms(model: nn.Module) -> Tensor:
    """L2 norms, (1 + 2 stages,) fp32 on the model's device, without a host sync.

    Of all gradients, of each stage's gradients, of each stage's parameters. A gradient that is not
    finite makes its own inf or NaN. Each tensor is read once.
    """
    stages = _stages(model).values()
    of_gradients = [gradient_norm(stage) for stage in stages]
    of_weights = [get_total_norm(stage) for stage in stages]
    return torch.stack([get_total_norm(of_gradients), *of_gradients, *of_weights])
