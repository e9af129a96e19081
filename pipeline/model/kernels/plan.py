"""The launches that a forward or a backward pass of one layer consists of.

They are made once for each shape, dtype, device and kind of layer, and then called with tensors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from pipeline.model.kernels import batch_norm as kernels
from pipeline.model.kernels.launch import Launch
from pipeline.model.kernels.tiling import choose_tiling

_FINISH_WARPS = 4


@dataclass(frozen=True, slots=True)
class Forward:
    """Launches of a forward pass."""

    chunks: int
    """CHUNKS of the sums."""
    statistics: Launch
    """x, partial."""
    finish: Launch
    """partial, stats, running mean and variance; momentum, eps."""
    normalize: Launch
    """x, stats, weight, bias, z, z_stats, z_weight, z_bias, y, bits."""


@dataclass(frozen=True, slots=True)
class Backward:
    """Launches of a backward pass."""

    chunks: int
    """CHUNKS of the sums."""
    sums: Launch
    """dy, dy2, x, stats, weight, bias, z, z_stats, bits, g, partial."""
    finish: Launch
    """partial, stats, z_stats, dweight, dbias, z_dweight, z_dbias."""
    inputs: Launch
    """g or dy, x, stats, weight, bias, dweight, dbias, z, z_stats, z_weight, z_dweight, dx, dz."""


@functools.cache
def forward(
    rows: int, channels: int, device: torch.device, dtype: torch.dtype, added: int, relu: bool,
    mask: bool,
) -> Forward:  # fmt: skip
    """For (M, C) activations of `dtype`; the arguments are what a `Launch` must not see change.

    Args:
        rows: M.
        channels: C.
        device: where they lie.
        dtype: theirs.
        added: 0: nothing is added, 1: z, 2: norm(z).
        relu: whether there is a ReLU.
        mask: whether there is a place for its mask.
    """
    del dtype, added, mask  # they are part of the key alone
    tiling = choose_tiling(rows, channels, device)
    sum_grid = tiling.sum_grid(rows, channels)
    chunks = sum_grid[1]
    statistics = (rows, channels, tiling.sum_chunk, tiling.sum_rows, tiling.channels)
    finish = (
        rows, channels, chunks, tiling.sum_chunk, tiling.finish_rows(chunks),
        tiling.finish_channels,
    )  # fmt: skip
    normalize = (rows, channels, tiling.map_chunk, relu, tiling.map_rows, tiling.channels)
    return Forward(
        chunks,
        Launch(kernels.statistics, sum_grid, statistics, tiling.sum_warps),
        Launch(
            kernels.finish_statistics, tiling.finish_grid(channels), finish, _FINISH_WARPS
        ),
        Launch(
            kernels.normalize, tiling.map_grid(rows, channels), normalize, tiling.map_warps
        ),
    )  # fmt: skip


@functools.cache
def backward(
    rows: int, channels: int, device: torch.device, dtypes: tuple[torch.dtype, torch.dtype],
    two: bool, added: int, mask: bool, relu: bool, train: bool,
) -> Backward:  # fmt: skip
    """As `forward`; `dtypes` are those of x and dy, `two` says whether a second dy comes, `train`
    whether statistics depend on x."""
    del dtypes, mask
    tiling = choose_tiling(rows, channels, device)
    sum_grid = tiling.sum_grid(rows, channels)
    chunks = sum_grid[1]
    find_mask = relu and not (added or two)  # else the gradient has passed the mask already
    sums = (rows, channels, tiling.sum_chunk, relu, tiling.sum_rows, tiling.channels)
    finish = (channels, chunks, tiling.finish_rows(chunks), tiling.finish_channels)
    inputs = (
        rows, channels, tiling.map_chunk, find_mask, train, tiling.map_rows, tiling.channels,
    )  # fmt: skip
    return Backward(
        chunks,
        Launch(kernels.gradient_sums, sum_grid, sums, tiling.sum_warps),
        Launch(
            kernels.finish_gradient_sums, tiling.finish_grid(channels), finish, _FINISH_WARPS
        ),
        Launch(
            kernels.input_gradients, tiling.map_grid(rows, channels), inputs, tiling.map_warps
        ),
    )  # fmt: skip
