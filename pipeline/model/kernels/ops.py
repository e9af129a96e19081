"""The kernels of `batch_norm` as PyTorch operators with gradients: which tiles, which grid, which
buffers.

Activations come as (N, C, H, W) channels-last tensors of one dtype, which is the matrix (M, C) the
kernels see. CUDA tensors, or, where Triton's interpreter is on, CPU tensors.

Two functions that torch.compile sees as opaque operators, tied together by an autograd.Function:
`register_autograd` takes no operator that changes an argument, and the forward pass moves the
running statistics. There is no autocast rule on purpose: activations arrive in half precision, and
a rule would cast the fp32 parameters as well.

Outside torch.compile the functions are called as they are: the dispatch of an operator written in
Python took 20 times as long as the call (torch 2.13), and a step has a hundred of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.model.kernels import batch_norm as kernels

_MOST_CHUNKS = 4096  # the grid's second dimension ends at 65,535


@dataclass(frozen=True)
class Tiling:
    """The tiling of an (M, C) matrix. Tiles have powers of 2 of rows and channels."""

    channels: int
    """Channels of a tile; at least 8, which is a byte of the mask."""
    sum_rows: int
    """Rows of a tile of the kernels that sum."""
    sum_chunk: int
    """Rows that one of their programs goes through; their result depends on it and sum_rows."""
    map_rows: int
    """Rows of a tile of the elementwise kernels."""
    map_chunk: int
    """Rows that one of their programs goes through."""
    finish_channels: int = 8
    """Channels of a program that merges chunks; 8 make a sector of 32 bytes."""
    sum_warps: int = 4
    map_warps: int = 8


@functools.cache
def choose_tiling(rows: int, channels: int, device: torch.device) -> Tiling:
    """Tiles of 32 x 64 with 4 warps and 64 x 64 with 8, which spill no register on sm_80 and sm_90
    in any dtype; about 4 programs per multiprocessor for the sums, 16 for elementwise kernels.

    On a CPU, in the interpreter, a program costs the same whatever its size: so few and tall ones.
    """
    if device.type == "cpu":
        wide = max(8, triton.next_power_of_2(channels))
        tall = min(triton.next_power_of_2(rows), max(1, 2**18 // wide))
        chunk = triton.cdiv(rows, tall) * tall
        return Tiling(wide, tall, chunk, tall, chunk, finish_channels=wide)
    wide = min(64, max(16, triton.next_power_of_2(channels)))
    processors = torch.cuda.get_device_properties(device).multi_processor_count

    def chunk_rows(programs: int, tile: int) -> int:
        chunks = min(max(1, programs // triton.cdiv(channels, wide)), _MOST_CHUNKS)
        return triton.cdiv(triton.cdiv(rows, chunks), tile) * tile  # type: ignore[no-any-return]

    sums, maps = chunk_rows(4 * processors, 32), chunk_rows(16 * processors, 64)
    return Tiling(wide, 32, sums, 64, maps)


def _device_of(x: Tensor) -> torch.cuda.device_of:
    """Makes the GPU that `x` lies on the current one: Triton launches there."""
    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]  # missing in torch


def _channels_last(x: Tensor) -> Tensor:
    """`x` itself where it has the layout; a copy takes the place of any other."""
    return x.contiguous(memory_format=torch.channels_last)


def _mask_of(x: Tensor, has_mask: bool) -> Tensor:
    """Room for the ReLU's mask of an activation, (M, ceil(C / 8)) uint8, or (0, ceil(C / 8))."""
    rows, channels = _shape(x)
    return x.new_empty((rows if has_mask else 0, (channels + 7) // 8), dtype=torch.uint8)


def _shape(x: Tensor) -> tuple[int, int]:
    """(M, C) of an activation."""
    return x.numel() // x.shape[1], x.shape[1]


def _sum_grid(rows: int, channels: int, tiling: Tiling) -> tuple[int, int]:
    return triton.cdiv(channels, tiling.channels), triton.cdiv(rows, tiling.sum_chunk)


def _map_grid(rows: int, channels: int, tiling: Tiling) -> tuple[int, int]:
    return triton.cdiv(channels, tiling.channels), triton.cdiv(rows, tiling.map_chunk)


def _finish_rows(chunks: int) -> int:
    return min(256, triton.next_power_of_2(chunks))  # type: ignore[no-any-return]


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
    x = _channels_last(x)
    residual = None if residual is None else _channels_last(residual)
    rows, channels = _shape(x)
    tiling = choose_tiling(rows, channels, x.device)
    stats = x.new_empty((len(eps), 2, channels), dtype=torch.float32)
    for i, found in enumerate(stats):
        mean, var = running[2 * i], running[2 * i + 1]
        if train:
            of = residual if i == 1 and residual is not None else x
            _statistics(of, mean, var, momenta[i], eps[i], found, tiling)
        else:
            torch.stack([mean, torch.rsqrt(var + eps[i])], out=found)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    mask = _mask_of(x, relu and keep_mask and residual is not None)
    z_stats, z_weight, z_bias = (stats[1], *parameters[2:]) if len(stats) == 2 else (None,) * 3
    with _device_of(x):
        kernels.normalize[_map_grid(rows, channels, tiling)](
            x, stats[0], *parameters[:2], residual, z_stats, z_weight, z_bias, y,
            mask if mask.numel() else None, rows, channels, tiling.map_chunk, relu,
            tiling.map_rows, tiling.channels, num_warps=tiling.map_warps,
        )  # fmt: skip
    return y, mask, stats


def _statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float,
    stats: Tensor, tiling: Tiling,
) -> None:  # fmt: skip
    """Writes those of `x` to `stats`, (2, C), and moves the running ones on by `momentum`."""
    rows, channels = _shape(x)
    grid = _sum_grid(rows, channels, tiling)
    chunks = grid[1]
    partial = x.new_empty((2, chunks, channels), dtype=torch.float32)
    with _device_of(x):
        kernels.statistics[grid](
            x, partial, rows, channels, tiling.sum_chunk,
            tiling.sum_rows, tiling.channels, num_warps=tiling.sum_warps,
        )  # fmt: skip
        kernels.finish_statistics[(triton.cdiv(channels, tiling.finish_channels),)](
            partial, stats, running_mean, running_var, rows, channels, chunks, tiling.sum_chunk,
            momentum, eps, _finish_rows(chunks), tiling.finish_channels, num_warps=4,
        )  # fmt: skip


batch_norm_act = torch.library.custom_op(
    "trainyard::batch_norm_act", forward_pass, mutates_args=("running",)
)


@batch_norm_act.register_fake
def _(
    x: Tensor, residual: Tensor | None, parameters: Sequence[Tensor], running: Sequence[Tensor],
    momenta: Sequence[float], eps: Sequence[float], relu: bool, train: bool, keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    mask = _mask_of(x, relu and keep_mask and residual is not None)
    stats = x.new_empty((len(eps), 2, x.shape[1]), dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), mask, stats


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
    dy, x = _channels_last(dy), _channels_last(x)
    dy2, z = (None if t is None else _channels_last(t) for t in (dy2, z))
    rows, channels = _shape(x)
    tiling = choose_tiling(rows, channels, x.device)
    grid = _sum_grid(rows, channels, tiling)
    chunks = grid[1]
    assert mask.numel() or not (add and relu), "the forward pass was told that no backward follows"
    sums = x.new_empty((2 if z is None else 3, chunks, channels), dtype=torch.float32)
    found = [torch.empty_like(parameter) for parameter in parameters]
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    # The gradient of what is added to norm(x): that of the residual, or, where the residual has a
    # norm of its own, on the way to it and in the same memory. It is also kept where it is a sum.
    g = torch.empty_like(dx) if add or dy2 is not None else None
    z_stats, z_weight, z_found, dz = (
        (None, None, (None, None), None) if z is None else (stats[1], parameters[2], found[2:], g)
    )
    with _device_of(x):
        kernels.gradient_sums[grid](
            dy, dy2, x, stats[0], *parameters[:2], z, z_stats,
            mask if mask.numel() else None, g, sums, rows, channels, tiling.sum_chunk, relu,
            tiling.sum_rows, tiling.channels, num_warps=tiling.sum_warps,
        )  # fmt: skip
        kernels.finish_gradient_sums[(triton.cdiv(channels, tiling.finish_channels),)](
            sums, stats[0], z_stats, *found[:2], *z_found, channels, chunks,
            _finish_rows(chunks), tiling.finish_channels, num_warps=4,
        )  # fmt: skip
        kernels.input_gradients[_map_grid(rows, channels, tiling)](
            dy if g is None else g, x, stats[0], *parameters[:2], *found[:2], z, z_stats,
            z_weight, z_found[0], dx, dz, rows, channels, tiling.map_chunk,
            relu and g is None, train,
            tiling.map_rows, tiling.channels, num_warps=tiling.map_warps,
        )  # fmt: skip
    return [*found, dx] if not add else [*found, dx, cast(Tensor, g)]


batch_norm_act_backward = torch.library.custom_op(
    "trainyard::batch_norm_act_backward", backward_pass, mutates_args=()
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
        run = batch_norm_act if torch.compiler.is_compiling() else forward_pass
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
        run = batch_norm_act_backward if torch.compiler.is_compiling() else backward_pass
        found = run(
            came[0], came[1] if len(came) > 1 else None, x, z, parameters, stats, mask,
            ctx.add, ctx.relu, ctx.train,
        )  # fmt: skip
        dx, dz = found[len(parameters)], found[-1] if ctx.add else None
        of_parameters = [*found[: len(parameters)], None, None][:4]
        return dx, dz, *of_parameters, None, None, None, None, None, None, None
