"""LARS and LAMB: every layer's step is scaled by the norm of its weights.

Both work on lists of tensors, as torch's own `foreach` optimizers do, and never make the host wait:
the scale of fp16's gradients and the flag of a step that is to be skipped stay on the device
(`GradScaler` asks the host of any optimizer that does not take them).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

MOMENTUM, SECOND_MOMENT = "momentum_buffer", "second_moment"
"""Keys of a parameter's state: SGD's own, which LARS and LAMB share, and the one more of LAMB."""

_LARS_EPSILON = 1e-8
_LAMB_EPSILON = 1e-6


class _Layerwise(torch.optim.Optimizer, ABC):
    """The groups, loss scaling and the layer's scale that LARS and LAMB have in common.

    Parameters without a gradient are left alone. Gradients are only read.
    """

    _step_supports_amp_scaling = True  # so that `GradScaler` sets `grad_scale` and `found_inf`

    # Torch's wrapper around these would load its compiler: see `optimizer._Sgd`.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Changes the parameters, and nothing at all in a step that loss scaling skips."""
        self._begin()
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            if parameters:
                self._update(group, parameters, self._gradients(parameters))

    def _begin(self) -> None:
        """What a step does once, before its groups."""

    @abstractmethod
    def _update(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None: ...

    def _gradients(self, parameters: list[Tensor]) -> list[Tensor]:
        """The gradients without fp16's scale; zeros in a step that is skipped."""
        found: list[Tensor] = [one.grad for one in parameters if one.grad is not None]
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            found = list(torch._foreach_div(found, scale))
        if overflow is not None:
            skipped, zero = overflow > 0, torch.zeros_like(overflow)
            found = [torch.where(skipped, zero, one) for one in found]  # a zero times inf is NaN
        return found

    def _unless_skipped(self, usual: Any, skipped: float) -> Any:
        """`usual`, or on the device `skipped` in a step that loss scaling skips."""
        overflow: Tensor | None = getattr(self, "found_inf", None)
        return usual if overflow is None else torch.where(overflow > 0, skipped, usual)

    def _descend(self, parameters: list[Tensor], updates: list[Tensor], lr: float) -> None:
        rate = self._unless_skipped(lr, 0.0)
        if isinstance(rate, Tensor):
            torch._foreach_sub_(parameters, torch._foreach_mul(updates, rate))
        else:
            torch._foreach_add_(parameters, updates, alpha=-rate)


class Lars(_Layerwise):
    """LARS (You, Gitman and Ginsburg 2017) with momentum, as timm's `Lars` has it.

    A gradient with weight decay is scaled by trust * |w| / (|g| + decay * |w| + 1e-8) before SGD
    takes it; where w or g is zero, or in a group without weight decay, it stays as it is.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, nesterov: bool,
        trust_coefficient: float,
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        self._nesterov, self._trust_coefficient = nesterov, trust_coefficient

    def _update(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        decay, momentum = group["weight_decay"], group["momentum"]
        if decay != 0:
            of_weights, of_gradients = _norms(parameters), _norms(gradients)
            ratios = _where_both(
                of_weights,
                of_gradients,
                self._trust_coefficient * of_weights
                / (of_gradients + decay * of_weights + _LARS_EPSILON),
            )  # fmt: skip
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
            _scale(gradients, self._unless_skipped(ratios, 0.0))
        updates = gradients
        if momentum != 0:
            velocity = [self.state[one][MOMENTUM] for one in parameters]
            torch._foreach_mul_(velocity, self._unless_skipped(momentum, 1.0))
            torch._foreach_add_(velocity, gradients)
            updates = velocity
            if self._nesterov:
                updates = list(torch._foreach_add(gradients, velocity, alpha=momentum))
        self._descend(parameters, updates, group["lr"])


class Lamb(_Layerwise):
    """LAMB (You et al. 2020), as timm's `Lamb` has it by default, but for the clipping to a norm of
    1 that timm's does inside: that is `optim.clip_norm`.

    Adam's step with bias correction and epsilon 1e-6, to which the decayed weights are added, is
    scaled to the norm of the weights; where either is zero, or in a group without weight decay, it
    stays as it is. A parameter's state has both moments.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, beta2: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        self._beta1, self._beta2 = momentum, beta2
        device = self.param_groups[0]["params"][0].device
        self.updates = torch.zeros((), dtype=torch.float64, device=device)
        """Steps that were not skipped, on the device. In double precision, as 1 - beta2 ** updates
        would lose four digits in single."""
        self._corrections = (torch.ones((), device=device), torch.ones((), device=device))

    def _begin(self) -> None:
        self.updates += self._unless_skipped(1.0, 0.0)
        count = self.updates.clamp(min=1)  # where the first step is skipped
        of_first, of_second = 1 - self._beta1**count, 1 - self._beta2**count
        # In the parameters' dtype, in which a whole list is divided at once.
        self._corrections = of_first.float(), of_second.sqrt().float()

    def _update(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        first = [self.state[one][MOMENTUM] for one in parameters]
        second = [self.state[one][SECOND_MOMENT] for one in parameters]
        torch._foreach_mul_(first, self._unless_skipped(self._beta1, 1.0))
        torch._foreach_add_(first, gradients, alpha=1 - self._beta1)
        torch._foreach_mul_(second, self._unless_skipped(self._beta2, 1.0))
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - self._beta2)
        of_first, of_second = self._corrections
        deviations = torch._foreach_sqrt(second)
        torch._foreach_div_(deviations, of_second)
        torch._foreach_add_(deviations, _LAMB_EPSILON)
        updates = list(torch._foreach_div(first, of_first))
        torch._foreach_div_(updates, deviations)
        decay = group["weight_decay"]
        if decay != 0:
            torch._foreach_add_(updates, parameters, alpha=decay)
            of_weights, of_updates = _norms(parameters), _norms(updates)
            _scale(updates, _where_both(of_weights, of_updates, of_weights / of_updates))
        self._descend(parameters, updates, group["lr"])


def _norms(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of each tensor, (n,) on their device."""
    return torch.stack(torch._foreach_norm(tensors))


def _where_both(one: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
    """`ratio` where both norms are above 0, else 1; all (n,)."""
    return torch.where((one > 0) & (other > 0), ratio, 1.0)


def _scale(tensors: list[Tensor], factors: Tensor) -> None:
    """Multiplies each tensor by its own factor of `factors` (n,)."""
    torch._foreach_mul_(tensors, factors.unbind())
