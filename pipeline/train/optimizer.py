"""SGD with its parameter groups, and norms of gradients and weights by stage of the network."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def build_optimizer(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, decay_norm_and_bias: bool,
    head_share: float | None = None,
) -> torch.optim.SGD:  # fmt: skip
    """Builds SGD over two groups, named by their key `name`: "weights" and "norm_and_bias"; with a
    `head_share` those of the last layer, "head_weights" and "head_bias", are apart. Parameters that
    do not require a gradient are in none.

    The paper decays every parameter (section 3.4); Goyal et al. 2017, section 5.1, do not decay
    BN's. The groups are the same two in both cases, so a checkpoint's layout does not depend on
    it. `param_names` holds each group's parameter names as `model.named_parameters()` gives them.

    Momentum is PyTorch's: v = momentum * v + g; w = w - lr * v. Caffe's, which the paper ran
    with, has lr inside: v = momentum * v - lr * g; w = w + v. They agree while lr is constant; at
    a drop PyTorch's takes effect on the whole velocity at once, which is what Goyal et al. 2017,
    section 3, restore in the other by "momentum correction". Weight decay is part of g in both.

    Args:
        model: on its final device.
        lr: of the first step; see `set_lr`.
        momentum: share of the velocity kept.
        weight_decay: L2 penalty of the group "weights".
        decay_norm_and_bias: whether the other group (BN's scales and shifts, biases) has it too.
        head_share: the last layer's learning rate as a multiple of `lr`; None: it has `lr`.
    """
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    groups = _groups(named, weight_decay, weight_decay if decay_norm_and_bias else 0.0)
    if head_share is not None:
        decays = [group["weight_decay"] for group in groups]
        head = _groups([pair for pair in named if pair[0].startswith(_HEAD)], *decays)
        for name, group in zip(("head_weights", "head_bias"), head, strict=True):
            group |= {"name": name, "lr": lr * head_share, "lr_share": head_share}
        groups = _groups([pair for pair in named if not pair[0].startswith(_HEAD)], *decays) + head
    # Torch knows no names of an empty group, and refuses groups some of which have names.
    groups = [group for group in groups if group["params"]]
    on_cuda = all(parameter.is_cuda for _, parameter in named)
    optimizer = _Sgd(groups, lr=lr, momentum=momentum, fused=True if on_cuda else None)
    if momentum > 0:
        # SGD would make its buffers in the first step. The fused one (2.13) leaves them
        # uninitialised when loss scaling skips that step, and the next would use what is in them.
        for _, parameter in named:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


_HEAD = "fc."
"""What names of the last layer begin with."""


def _groups(
    named: list[tuple[str, nn.Parameter]], weight_decay: float, other_decay: float
) -> list[dict[str, Any]]:
    # Only BN's scale and shift and biases have one dimension.
    weights = [pair for pair in named if pair[1].ndim > 1]
    norm_and_bias = [pair for pair in named if pair[1].ndim == 1]
    return [
        {"name": "weights", "params": weights, "weight_decay": weight_decay},
        {"name": "norm_and_bias", "params": norm_and_bias, "weight_decay": other_decay},
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group; that of the last layer in its own ratio to `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)


class _Sgd(torch.optim.SGD):
    """torch.optim.SGD that does not load torch's compiler.

    Torch's wrapper around these methods keeps the compiler away from them, for which it imports
    torch._dynamo: about half of a rank's start, and some thousand files that every rank would
    open. No optimizer is compiled here.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


_STEM = ("conv1", "bn1")


def _stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    stages: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        first = name.partition(".")[0]
        stages.setdefault("stem" if first in _STEM else first, []).append(parameter)
    return stages


@torch.no_grad()
def norms(model: nn.Module) -> Tensor:
    """L2 norms, (1 + 2 stages,) fp32 on the model's device, without a host sync.

    For all gradients, each stage's gradients, each stage's parameters. Parameters without a
    gradient are left out; one that is not finite makes its own inf or NaN. Each tensor is read
    once.
    """
    stages = _stages(model).values()
    gradients = ([p.grad for p in stage if p.grad is not None] for stage in stages)
    none = next(model.parameters()).new_zeros(())  # of a stage that is frozen
    of_gradients = [get_total_norm(stage) if stage else none for stage in gradients]
    of_weights = [get_total_norm(stage) for stage in stages]
    return torch.stack([get_total_norm(of_gradients), *of_gradients, *of_weights])


def named_norms(model: nn.Module, found: Tensor) -> dict[str, float | None]:
    """The values of `norms`, by their names in metrics.jsonl. A host sync.

    None for what is not finite, which JSON does not have: a step that fp16 skips has such a norm.
    """
    stages = _stages(model)
    by_stage = [f"{kind}_norm_{stage}" for kind in ("gradient", "weight") for stage in stages]
    values = [value if math.isfinite(value) else None for value in found.tolist()]
    return dict(zip(["gradient_norm", *by_stage], values, strict=True))
