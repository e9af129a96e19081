"""Parts of a network that keep their weights: they get no gradient, and so neither momentum, decay
nor a place in what ranks exchange; their norm layers use their running statistics, and leave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from pipeline.model.norm import BatchNormAct

_Module = TypeVar("_Module", bound=nn.Module)


def freeze(model: _Module, parts: Sequence[str]) -> _Module:
    """`model`, a `ResNet`, with these `parts` frozen, which are those of `ModelConfig.frozen`.

    To be called before anything takes the model's parameters: an optimizer, the average of
    gradients, the recording of BN's statistics or of CUDA graphs.
    """
    names = [
        n for part in parts for n in (("conv1", "bn1") if part == "stem" else (f"layer{part}",))
    ]
    for module in map(model.get_submodule, names):
        module.requires_grad_(False)
        for layer in module.modules():
            if isinstance(layer, BatchNormAct):
                layer.frozen = True
        module.train(module.training)  # where norm layers look at `frozen`
    return model


def trained_share(model: nn.Module) -> str:
    """How much of a network trains, for the log."""
    every = [parameter.numel() for parameter in model.parameters()]
    trained = [one.numel() for one in model.parameters() if one.requires_grad]
    return f"{sum(trained):,} of {sum(every):,} parameters train"
