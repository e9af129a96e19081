"""The kernels of `batch_norm` as PyTorch operators with gradients: which launches, which buffers.

Activations come as (N, C, H, W) channels-last tensors of one dtype, which is the matrix (M, C) the
kernels see. CUDA tensors, or, where Triton's interpreter is on, CPU tensors.

Two functions that torch.compile sees as opaque operators, tied together by an autograd.Function:
`register_autograd` takes no operator that changes an argument, and the forward pass moves the
running statistics. There is no autocast rule on purpose: activations arrive in half precision, and
a rule would cast the fp32 parameters as well.

Outside torch.compile the functions are called as they are: the dispatch of an operator written in
Python took 20 times as long as the call (torch 2.13), and a step has a hundred of them. For the
same reason they make no tensor that is not needed, and no view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model.kernels import plan
from pipeline.model.kernels.launch import current_stream

_FP32 = torch.float32
_CHANNELS_LAST = torch.channels_last


def _on_current_gpu(x: Tensor) -> bool:
    """Whether kernels for `x` can be launched as things are; so it is in training."""
    gpu = x.get_device()  # -1 on a CPU
    return gpu < 0 or gpu == torch.cuda.current_device()


def _channels_last(x: Tensor) -> Tensor:
    """`x` itself where it has the layout; a copy takes the place of any other."""
    return x.contiguous(memory_format=_CHANNELS_LAST)


def _mask_of(x: Tensor, rows: int) -> Tensor:
    """Room for the ReLU's mask of `rows` of an activation, (rows, ceil(C / 8)) uint8."""
    return x.new_empty((rows, (x.size(1) + 7) // 8), dtype=torch.uint8)


def _rows(x: Tensor) -> int:
    """M of an activation."""
    return x.numel() // x.size(1)


Forwarded = tuple[Tensor, Tensor | None, Tensor]
"""y, mask and statistics, as `forward_pass` gives them, without a mask where it would be empty."""


def _forward(
    x: Tensor, residual: Tensor | None, parameters: Sequence[Tensor], running: Sequence[Tensor],
    momenta: Sequence[float], eps: Sequence[float], relu: bool, train: bool, keep_mask: bool,
) -> Forwarded:  # fmt: skip
    """`forward_pass` on the current GPU."""
    x = _channels_last(x)
    added = 0
    if residual is not None:
        residual = _channels_last(residual)
        added = len(eps)
    channels = x.size(1)
    rows = x.numel() // channels
    mask = _mask_of(x, rows) if added and relu and keep_mask else None
    launches = plan.forward(rows, channels, x.device, x.dtype, added, relu, mask is not None)
    stream = current_stream(x.get_device())
    stats = x.new_empty((len(eps), 2, channels), dtype=_FP32)
    own, z_stats = stats.unbind(0) if added == 2 else (stats, None)
    if train:
        partial = x.new_empty((2, launches.chunks, channels), dtype=_FP32)
        launches.statistics(stream, (x, partial))
        launches.finish(stream, (partial, own, running[0], running[1]), (momenta[0], eps[0]))
        if z_stats is not None:  # in the same buffer: the launches run one after the other
            launches.statistics(stream, (residual, partial))
            launches.finish(
                stream, (partial, z_stats, running[2], running[3]), (momenta[1], eps[1])
            )
    else:
        for i, found in enumerate(stats):
            torch.stack([running[2 * i], torch.rsqrt(running[2 * i + 1] + eps[i])], out=found)
    y = torch.empty_like(x)  # channels-last too
    z_weight, z_bias = parameters[2:] if added == 2 else (None, None)
    launches.normalize(
        stream,
        (x, own, parameters[0], parameters[1], residual, z_stats, z_weight, z_bias, y, mask),
    )
    return y, mask, stats


def _forward_anywhere(x: Tensor, *rest: Any) -> Forwarded:
    """`_forward`, with the GPU that `x` lies on as the current one: kernels are launched there."""
    if _on_current_gpu(x):
        return _forward(x, *rest)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # missing in torch
        return _forward(x, *rest)


def forward_pass(
    x: Tensor, residual: Tensor | None, parameters: Sequence[Tensor], running: Sequence[Tensor],
    momenta: Sequence[float], eps: Sequence[float], relu: bool, train: bool, keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y = relu(norm(x) + residual), the ReLU's mask, (M, ceil(C / 8)) uint8 or empty, and the
    statistics, (1 or 2, 2, C) fp32: mean and 1 / sqrt(var + eps) of each.

    The lists hold what belongs to x, and then, if the residual is normalised too, what belongs to
    the residual.

    Args:
        x: (N, C, H, W) fp16, bf16 or fp32; another layout than channels-last costs a copy.
        residual: like x.
        parameters: weight, bias, ...; (C,) fp32.
        running: mean, unbiased variance, ...; (C,) fp32. In training they move on, else they are
            used.
        momenta: how far they move.
        eps: added to the variance.
        relu: whether there is a ReLU.
        train: whether the statistics are those of the activations.
        keep_mask: whether a backward pass follows, which without a residual needs no mask either.
    """
    y, mask, stats = _forward_anywhere(
        x, residual, parameters, running, momenta, eps, relu, train, keep_mask
    )
    return y, _mask_of(x, 0) if mask is None else mask, stats


batch_norm_act = torch.library.custom_op(
    "trainyard::batch_norm_act", forward_pass, mutates_args=("running",)
)


@batch_norm_act.register_fake
def _(
    x: Tensor, residual: Tensor | None, parameters: Sequence[Tensor], running: Sequence[Tensor],
    momenta: Sequence[float], eps: Sequence[float], relu: bool, train: bool, keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    has_mask = relu and keep_mask and residual is not None
    stats = x.new_empty((len(eps), 2, x.shape[1]), dtype=_FP32)
    mask = _mask_of(x, _rows(x) if has_mask else 0)
    return torch.empty_like(x, memory_format=_CHANNELS_LAST), mask, stats


def _backward(
    dy: Tensor, dy2: Tensor | None, x: Tensor, z: Tensor | None, parameters: Sequence[Tensor],
    stats: Tensor, mask: Tensor | None, add: bool, relu: bool, train: bool,
) -> list[Tensor]:  # fmt: skip
    """`backward_pass` on the current GPU; None may take the place of an empty mask."""
    dy, x = _channels_last(dy), _channels_last(x)
    dy2, z = dy2 if dy2 is None else _channels_last(dy2), z if z is None else _channels_last(z)
    channels = x.size(1)
    rows = x.numel() // channels
    added = 0 if not add else 1 if z is None else 2
    mask = mask if mask is not None and mask.numel() else None
    assert mask is not None or not (add and relu), "the forward pass was told: no backward follows"
    launches = plan.backward(
        rows, channels, x.device, (x.dtype, dy.dtype), dy2 is not None, added, mask is not None,
        relu, train,
    )  # fmt: skip
    stream = current_stream(x.get_device())
    sums = x.new_empty((3 if added == 2 else 2, launches.chunks, channels), dtype=_FP32)
    found = [torch.empty_like(parameter) for parameter in parameters]
    dx = torch.empty_like(x)
    # The gradient of what is added to norm(x): that of the residual, or, where the residual has a
    # norm of its own, on the way to it and in the same memory. It is also kept where it is a sum.
    g = torch.empty_like(x) if add or dy2 is not None else None
    weight, bias, dweight, dbias = parameters[0], parameters[1], found[0], found[1]
    own, z_stats, z_weight, z_dweight, z_dbias, dz = stats, None, None, None, None, None
    if added == 2:
        own, z_stats = stats.unbind(0)
        z_weight, z_dweight, z_dbias, dz = parameters[2], found[2], found[3], g
    launches.sums(stream, (dy, dy2, x, own, weight, bias, z, z_stats, mask, g, sums))
    launches.finish(stream, (sums, own, z_stats, dweight, dbias, z_dweight, z_dbias))
    passed = dy if g is None else g
    launches.inputs(
        stream,
        (passed, x, own, weight, bias, dweight, dbias, z, z_stats, z_weight, z_dweight, dx, dz),
    )
    return [*found, dx] if not add else [*found, dx, cast(Tensor, g)]


def _backward_anywhere(dy: Tensor, *rest: Any) -> list[Tensor]:
    """`_backward`, with the GPU that `dy` lies on as the current one."""
    if _on_current_gpu(dy):
        return _backward(dy, *rest)
    with torch.cuda.device_of(dy):  # type: ignore[no-untyped-call]
        return _backward(dy, *rest)


def backward_pass(
    dy: Tensor, dy2: Tensor | None, x: Tensor, z: Tensor | None, parameters: Sequence[Tensor],
    stats: Tensor, mask: Tensor, add: bool, relu: bool, train: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of parameters, in their order, then of x, then of the residual if there is one.

    Args:
        dy: a gradient of y.
        dy2: another one, to be added to it.
        x: as `forward_pass` got it.
        z: the residual, if it is normalised.
        parameters: as `forward_pass` got them.
        stats: as `forward_pass` gave them.
        mask: likewise.
        add: whether there is a residual.
        relu: as `forward_pass` got it.
        train: likewise: whether the statistics are those of x (and z), and so depend on them.
    """
    return _backward_anywhere(dy, dy2, x, z, parameters, stats, mask, add, relu, train)


batch_norm_act_backward = torch.library.custom_op(
    "trainyard::batch_norm_act_backward", backward_pass, mutates_args=()
)


@batch_norm_act_backward.register_fake
def _(
    dy: Tensor, dy2: Tensor | None, x: Tensor, z: Tensor | None, parameters: Sequence[Tensor],
    stats: Tensor, mask: Tensor, add: bool, relu: bool, train: bool,
) -> list[Tensor]:  # fmt: skip
    dx = [torch.empty_like(x, memory_format=_CHANNELS_LAST) for _ in range(1 + add)]
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
        run: Any = batch_norm_act if torch.compiler.is_compiling() else _forward_anywhere
        y, mask, stats = run(x, residual, parameters, running, momenta, eps, relu, train, keep_mask)
        ctx.set_materialize_grads(False)
        ctx.add, ctx.relu, ctx.train = residual is not None, relu, train
        # What is only added is not kept: no gradient depends on it.
        z = residual if len(parameters) == 4 else None
        ctx.save_for_backward(x, z, stats, mask, *parameters)
        return (y, y.view_as(y)) if fork else y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        # The decorator takes time, and has an effect only where a second derivative is asked for.
        once = _gradients_once if torch.is_grad_enabled() else _gradients
        return once(ctx, *gradients)


def _gradients(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    x, z, stats, mask, *parameters = ctx.saved_tensors
    # A view that nothing was computed from brings no gradient.
    came = [gradient for gradient in gradients if gradient is not None]
    if not came:
        return (None,) * 13
    run: Any = batch_norm_act_backward if torch.compiler.is_compiling() else _backward_anywhere
    found = run(
        came[0], came[1] if len(came) > 1 else None, x, z, parameters, stats, mask,
        ctx.add, ctx.relu, ctx.train,
    )  # fmt: skip
    dx, dz = found[len(parameters)], found[-1] if ctx.add else None
    of_parameters = [*found[: len(parameters)], None, None][:4]
    return dx, dz, *of_parameters, None, None, None, None, None, None, None


_gradients_once = once_differentiable(_gradients)
