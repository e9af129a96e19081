"""Launches the kernels of `batch_norm`: which tiles, which grid, which buffers.

Activations come as (N, C, H, W) channels-last tensors of one dtype, which is the matrix (M, C) the
kernels see. CUDA tensors, or, where Triton's interpreter is on, CPU tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import triton
from torch import Tensor

from pipeline.model.kernels import batch_norm as kernels

_MOST_CHUNKS = 4096  # the grid's second dimension ends at 65,535


@dataclass(frozen=True)
class Tiling:
    """How an (M, C) matrix is cut up. Tiles have powers of 2 of rows and channels."""

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

    On a CPU, in the interpreter, a program costs the same whatever its size: few and tall ones.
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


def mask_bytes(channels: int) -> int:
    """Bytes per row of the ReLU's mask."""
    return (channels + 7) // 8


def _shape(x: Tensor) -> tuple[int, int]:
    """(M, C) of an activation."""
    return x.numel() // x.shape[1], x.shape[1]


def statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float,
    stats: Tensor, tiling: Tiling | None = None,
) -> None:  # fmt: skip
    """Writes the mean and 1 / sqrt(var + eps) of `x` to `stats`, (2, C) fp32.

    The running mean and the running unbiased variance, (C,) fp32, move on by `momentum`.
    """
    rows, channels = _shape(x)
    tiling = tiling or choose_tiling(rows, channels, x.device)
    chunks = triton.cdiv(rows, tiling.sum_chunk)
    partial = x.new_empty((2, chunks, channels), dtype=torch.float32)
    with _device_of(x):
        kernels.statistics[(triton.cdiv(channels, tiling.channels), chunks)](
            x, partial, rows, channels, tiling.sum_chunk,
            tiling.sum_rows, tiling.channels, num_warps=tiling.sum_warps,
        )  # fmt: skip
        kernels.finish_statistics[(triton.cdiv(channels, tiling.finish_channels),)](
            partial, stats, running_mean, running_var, rows, channels, chunks, tiling.sum_chunk,
            momentum, eps, _finish_rows(chunks), tiling.finish_channels, num_warps=4,
        )  # fmt: skip


def _finish_rows(chunks: int) -> int:
    return min(256, triton.next_power_of_2(chunks))  # type: ignore[no-any-return]


def normalize(
    x: Tensor, stats: Tensor, parameters: Sequence[Tensor], residual: Tensor | None, relu: bool,
    keep_mask: bool, tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y = relu(norm(x) + residual) and the ReLU's mask, (M, ceil(C / 8)) uint8 or empty.

    Args:
        x: an activation.
        stats: of x, and, if the residual is normalised too, of the residual.
        parameters: weight and bias of x, and then those of the residual; (C,) fp32.
        residual: an activation like x.
        relu: whether there is a ReLU.
        keep_mask: whether a backward pass follows, which without a residual needs no mask either.
        tiling: for tests and benchmarks.
    """
    rows, channels = _shape(x)
    tiling = tiling or choose_tiling(rows, channels, x.device)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    has_mask = relu and keep_mask and residual is not None
    mask = x.new_empty((rows if has_mask else 0, mask_bytes(channels)), dtype=torch.uint8)
    z_stats, z_weight, z_bias = (stats[1], *parameters[2:]) if len(stats) == 2 else (None,) * 3
    with _device_of(x):
        kernels.normalize[_map_grid(rows, channels, tiling)](
            x, stats[0], *parameters[:2], residual, z_stats, z_weight, z_bias, y,
            mask if has_mask else None, rows, channels, tiling.map_chunk, relu,
            tiling.map_rows, tiling.channels, num_warps=tiling.map_warps,
        )  # fmt: skip
    return y, mask


def _map_grid(rows: int, channels: int, tiling: Tiling) -> tuple[int, int]:
    return triton.cdiv(channels, tiling.channels), triton.cdiv(rows, tiling.map_chunk)


def gradients(
    dy: Tensor, dy2: Tensor | None, x: Tensor, z: Tensor | None, stats: Tensor,
    parameters: Sequence[Tensor], mask: Tensor, add: bool, relu: bool, train: bool,
    tiling: Tiling | None = None,
) -> list[Tensor]:  # fmt: skip
    """The gradients of `parameters`, in their order, of x, and, with `add`, of the residual.

    Args:
        dy: a gradient of y.
        dy2: another one, to be added to it.
        x: as `normalize` got it.
        z: the residual, if it is normalised.
        stats: as `normalize` got them.
        parameters: likewise.
        mask: what `normalize` gave.
        add: whether there is a residual.
        relu: as `normalize` got it.
        train: whether the statistics are those of x (and z), and so depend on them.
        tiling: for tests and benchmarks.
    """
    rows, channels = _shape(x)
    tiling = tiling or choose_tiling(rows, channels, x.device)
    chunks = triton.cdiv(rows, tiling.sum_chunk)
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
        kernels.gradient_sums[(triton.cdiv(channels, tiling.channels), chunks)](
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
