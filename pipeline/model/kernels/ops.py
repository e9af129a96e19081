"""The kernels as PyTorch operators with gradients.

Two functions that torch.compile sees as opaque operators, tied together by an autograd.Function:
`register_autograd` takes no operator that changes an argument, and the forward pass moves the
running statistics. There is no autocast rule on purpose: activations arrive in half precision, and
a rule would cast the fp32 parameters as well.

Outside torch.compile the functions are called as they are: the dispatch of an operator written in
Python took 20 times as long as the call (torch 2.13), and a step has a hundred of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model.kernels import launch


def _channels_last(x: Tensor) -> Tensor:
    """`x` itself where it has the layout; a copy takes the place of any other."""
    return x.contiguous(memory_format=torch.channels_last)


def _forward(
    x: Tensor, residual: Tensor | None, parameters: Sequence[Tensor], running: Sequence[Tensor],
    momenta: Sequence[float], eps: Sequence[float], relu: bool, train: bool, keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y = relu(norm(x) + residual), the ReLU's mask (`launch.normalize`) and the statistics.

    The lists hold what belongs to x, and then, if the residual is normalised too, what belongs to
    the residual. The statistics are (1 or 2, 2, C) fp32: mean and 1 / sqrt(var + eps) of each.

    Args:
        x: (N, C, H, W) fp16, bf16 or fp32; another layout than channels-last costs a copy.
        residual: like x.
        parameters: weight, bias, ...; (C,) fp32.
        running: mean, variance, ...; (C,) fp32. In training they move on, else they are used.
        momenta: how far they move.
        eps: added to the variance.
        relu: whether there is a ReLU.
        train: whether the statistics are those of the activations.
        keep_mask: whether a backward pass follows.
    """
    x = _channels_last(x)
    residual = None if residual is None else _channels_last(residual)
    stats = x.new_empty((len(eps), 2, x.shape[1]), dtype=torch.float32)
    for i, found in enumerate(stats):
        mean, var = running[2 * i], running[2 * i + 1]
        if train:
            of = residual if i == 1 and residual is not None else x
            launch.statistics(of, mean, var, momenta[i], eps[i], found)
        else:
            torch.stack([mean, torch.rsqrt(var + eps[i])], out=found)
    y, mask = launch.normalize(x, stats, parameters, residual, relu, keep_mask)
    return y, mask, stats


batch_norm_act = torch.library.custom_op(
    "trainyard::batch_norm_act", _forward, mutates_args=("running",)
)


@batch_norm_act.register_fake
def _(
    x: Tensor, residual: Tensor | None, parameters: Sequence[Tensor], running: Sequence[Tensor],
    momenta: Sequence[float], eps: Sequence[float], relu: bool, train: bool, keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    count, channels, height, width = x.shape
    rows = count * height * width if relu and keep_mask and residual is not None else 0
    mask = x.new_empty((rows, launch.mask_bytes(channels)), dtype=torch.uint8)
    stats = x.new_empty((len(eps), 2, channels), dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), mask, stats


def _backward(
    dy: Tensor, dy2: Tensor | None, x: Tensor, z: Tensor | None, parameters: Sequence[Tensor],
    stats: Tensor, mask: Tensor, add: bool, relu: bool, train: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of parameters, in their order, then of x, then of the residual if there is one.

    Args:
        dy: a gradient of y.
        dy2: another one, to be added to it.
        x: as `batch_norm_act` got it.
        z: the residual, if it is normalised.
        parameters: as `batch_norm_act` got them.
        stats: as `batch_norm_act` gave them.
        mask: likewise.
        add: whether there is a residual.
        relu: as `batch_norm_act` got it.
        train: likewise.
    """
    dy, x = _channels_last(dy), _channels_last(x)
    dy2, z = (None if t is None else _channels_last(t) for t in (dy2, z))
    return launch.gradients(dy, dy2, x, z, stats, parameters, mask, add, relu, train)


batch_norm_act_backward = torch.library.custom_op(
    "trainyard::batch_norm_act_backward", _backward, mutates_args=()
)


@batch_norm_act_backward.register_fake
def _(
    dy: Tensor, dy2: Tensor | None, x: Tensor, z: Tensor | None, parameters: Sequence[Tensor],
    stats: Tensor, mask: Tensor, add: bool, relu: bool, train: bool,
) -> list[Tensor]:  # fmt: skip
    dx = [torch.empty_like(x, memory_format=torch.channels_last) for _ in range(1 + add)]
    return [torch.empty_like(p) for p in parameters] + dx


class BatchNormActFunction(torch.autograd.Function):
    """`batch_norm_act` with gradients of x, residual and parameters, each once differentiable.

    Gives y, and with `fork` a second view of it: a gradient for each of the two comes back, and the
    backward kernel adds them while it reads them, which saves autograd's own pass over both.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor,
        residual_weight: Tensor | None, residual_bias: Tensor | None, running: Sequence[Tensor],
        momenta: Sequence[float], eps: Sequence[float], relu: bool, train: bool, fork: bool,
        keep_mask: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        parameters = [weight, bias]
        if residual_weight is not None and residual_bias is not None:
            parameters += [residual_weight, residual_bias]
        run = batch_norm_act if torch.compiler.is_compiling() else _forward
        y, mask, stats = run(x, residual, parameters, running, momenta, eps, relu, train, keep_mask)
        ctx.set_materialize_grads(False)
        ctx.add, ctx.relu, ctx.train = residual is not None, relu, train
        # What is only added is not kept: no gradient depends on it.
        z = residual if len(parameters) == 4 else None
        ctx.save_for_backward(x, z, stats, mask, *parameters)
        return (y, y.view_as(y)) if fork else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, z, stats, mask, *parameters = ctx.saved_tensors
        # A view that nothing was computed from brings no gradient.
        came = [gradient for gradient in gradients if gradient is not None]
        if not came:
            return (None,) * 13
        run = batch_norm_act_backward if torch.compiler.is_compiling() else _backward
        found = run(
            came[0], came[1] if len(came) > 1 else None, x, z, parameters, stats, mask,
            ctx.add, ctx.relu, ctx.train,
        )  # fmt: skip
        dx, dz = found[len(parameters)], found[-1] if ctx.add else None
        of_parameters = [*found[: len(parameters)], None, None][:4]
        return dx, dz, *of_parameters, None, None, None, None, None, None, None
