"""Tiles and grids of the kernels of `batch_norm`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

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

    def sum_grid(self, rows: int, channels: int) -> tuple[int, int]:
        """Grid of the kernels that sum; its second number is CHUNKS."""
        return triton.cdiv(channels, self.channels), triton.cdiv(rows, self.sum_chunk)

    def map_grid(self, rows: int, channels: int) -> tuple[int, int]:
        """Grid of the elementwise kernels."""
        return triton.cdiv(channels, self.channels), triton.cdiv(rows, self.map_chunk)

    def finish_grid(self, channels: int) -> tuple[int, int]:
        """Grid of the kernels that merge chunks."""
        return triton.cdiv(channels, self.finish_channels), 1

    @staticmethod
    def finish_rows(chunks: int) -> int:
        """Rows of a tile of the kernels that merge `chunks`."""
        return min(256, triton.next_power_of_2(chunks))  # type: ignore[no-any-return]


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
