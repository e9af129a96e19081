"""The optimizers with their parameter groups and their state, clipping, and norms of gradients and
weights by stage of the network."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pipeline.config import OptimConfig
from pipeline.train.layerwise import MOMENTUM, SECOND_MOMENT, Lamb, Lars


class Update(NamedTuple):
    """Which optimizer it is, and what no other has; the settings of these names say more."""

    optimizer: str = "sgd"
    nesterov: bool = False
    trust_coefficient: float = 0.001
    beta2: float = 0.999

    @classmethod
    def of(cls, optim: OptimConfig) -> Update:
        """That of a configuration."""
        return cls(*(getattr(optim, name) for name in cls._fields))


SGD = Update()


def build_optimizer(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, decay_norm_and_bias: bool,
    update: Update = SGD, head_share: float | None = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """Builds the optimizer over two groups, named by their key `name`: "weights" and
    "norm_and_bias"; with a `head_share` those of the last layer, "head_weights" and "head_bias",
    are apart. Parameters that do not require a gradient are in none.

    The paper decays every parameter (section 3.4); Goyal et al. 2017, section 5.1, do not decay
    BN's. The groups are the same two in both cases, so a checkpoint's layout does not depend on
    it. `param_names` holds each group's parameter names as `model.named_parameters()` gives them.

    Momentum is PyTorch's, also for LARS: v = momentum * v + g; w = w - lr * v. Caffe's, which the
    paper ran with, has lr inside: v = momentum * v - lr * g; w = w + v. They agree while lr is
    constant; at a drop PyTorch's takes effect on the whole velocity at once, which is what Goyal et
    al. 2017, section 3, restore in the other by "momentum correction". Weight decay is part of g in
    both.

    Args:
        model: on its final device.
        lr: of the first step; see `set_lr`.
        momentum: share of the velocity kept, in LAMB of the first moment.
        weight_decay: L2 penalty of the group "weights"; in LAMB added to the step instead.
        decay_norm_and_bias: whether the other group (BN's scales and shifts, biases) has it too.
        update: which optimizer.
        head_share: the last layer's learning rate as a multiple of `lr`; None: it has `lr`.
    """
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    decays = weight_decay, weight_decay if decay_norm_and_bias else 0.0
    groups = _groups(named, *decays)
    if head_share is not None:
        head = _groups([pair for pair in named if pair[0].startswith(_HEAD)], *decays)
        for name, group in zip(("head_weights", "head_bias"), head, strict=True):
            group |= {"name": name, "lr": lr * head_share, "lr_share": head_share}
        groups = _groups([pair for pair in named if not pair[0].startswith(_HEAD)], *decays) + head
    # Torch knows no names of an empty group, and refuses groups some of which have names.
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if update.optimizer == "lars":
        optimizer = Lars(groups, lr, momentum, update.nesterov, update.trust_coefficient)
    elif update.optimizer == "lamb":
        optimizer = Lamb(groups, lr, momentum, update.beta2)
    else:
        fused = True if all(parameter.is_cuda for _, parameter in named) else None
        optimizer = _Sgd(groups, lr=lr, momentum=momentum, nesterov=update.nesterov, fused=fused)
    # SGD would make its buffers in the first step. The fused one (2.13) leaves them
    # uninitialised when loss scaling skips that step, and the next would use what is in them.
    for key in _state_keys(optimizer, momentum):
        for _, parameter in named:
            optimizer.state[parameter][key] = torch.zeros_like(parameter)
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


def _state_keys(optimizer: torch.optim.Optimizer, momentum: float) -> tuple[str, ...]:
    if isinstance(optimizer, Lamb):
        return (MOMENTUM, SECOND_MOMENT)
    return (MOMENTUM,) if momentum > 0 else ()


def take_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The part of a checkpoint that is the optimizer's: `momentum` by parameter name, the tensors
    themselves, which the next update changes; of LAMB also `lamb`, which has the second moments and
    how often it has stepped, a host sync.

    Not `optimizer.state_dict()`: that also holds settings (fused, foreach) which belong to the
    machine, and which loading would carry over to another.
    """
    found: dict[str, Any] = {"momentum": _named(optimizer, model, MOMENTUM)}
    if isinstance(optimizer, Lamb):
        second = _named(optimizer, model, SECOND_MOMENT)
        found["lamb"] = {"second_moment": second, "updates": int(optimizer.updates)}
    return found


def restore_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, content: Mapping[str, Any]
) -> None:
    """Brings back what `take_state` returned in `content`, a checkpoint of the same optimizer; a
    parameter that has no state there begins without."""
    parts = {MOMENTUM: content["momentum"]}
    if isinstance(optimizer, Lamb):
        parts[SECOND_MOMENT] = content["lamb"]["second_moment"]
        optimizer.updates.fill_(content["lamb"]["updates"])
    for key, stored in parts.items():
        for name, parameter in model.named_parameters():
            if name in stored:
                copied = stored[name].to(parameter.device, copy=True)
                optimizer.state[parameter][key] = copied


def moments_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of `take_state` in `content`, by a name that says what it is."""
    second = content.get("lamb", {}).get("second_moment", {})
    return {
        **{f"the momentum of {name}": tensor for name, tensor in content["momentum"].items()},
        **{f"the second moment of {name}": tensor for name, tensor in second.items()},
    }


def _named(optimizer: torch.optim.Optimizer, model: nn.Module, key: str) -> dict[str, Tensor]:
    states = {name: optimizer.state.get(one, {}) for name, one in model.named_parameters()}
    return {
        name: state[key].detach() for name, state in states.items() if state.get(key) is not None
    }


@torch.no_grad()
def clip_(optimizer: torch.optim.Optimizer, most: float) -> None:
    """Scales all gradients together so that their common L2 norm is at most `most`, without a host
    sync; the bits of torch's `clip_grad_norm_`.

    A norm that is not finite changes nothing, so that it is still seen which gradient caused it.
    """
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    norm = get_total_norm(gradients)
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, torch.where(norm.isfinite(), factor, 1.0))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group; that of the last layer in its own ratio to `lr`."""
    for group in optimizer.param_groups:
        group["lr"], group["schedule_lr"] = lr * group.get("lr_share", 1.0), lr


def lr_in_force(optimizer: torch.optim.Optimizer) -> float:
    """What `set_lr` was last given, also where the last layer with a rate of its own is all that
    trains."""
    return float(optimizer.param_groups[0]["schedule_lr"])


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
