"""`benchmark allreduce`: how long ranks of this machine need to average a tensor, by its size.

Bandwidths are those of NCCL's tests (doc/PERFORMANCE.md of nccl-tests): algorithm bandwidth is
bytes / seconds, bus bandwidth that times 2 (n - 1) / n for n ranks, which is what each link of a
ring carries and does not depend on n. Times are those of the whole call as training makes it, with
Horovod's negotiation and its cycle; nccl-tests times the bare NCCL call.

Each rank is this module too, started as `python -m pipeline.benchmark.allreduce DEVICE`, cpu or
cuda: it times all-reduces each time the benchmark asks it to.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch

from pipeline.benchmark.processes import Processes, pick_kind, serve, start
from pipeline.benchmark.rank_options import AllreduceOptions, Dtype
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.benchmark.scaling_model import bus_share, fit_line
from pipeline.ranks import connect
from pipeline.ranks.world import World

_LARGEST = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
_SMALLEST = 4 * 2**10
_BURST = 64  # tensors in flight together: about the gradients of a ResNet-18
_REPEATED_BYTES = {"cpu": 2**24, "cuda": 2**30}
_REPEATS = (2, 20)
_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def run(options: AllreduceOptions) -> Result:
    """Seconds and bandwidths of every size and dtype, and a line through the times of each dtype.

    Raises ValueError: there are too few GPUs or cores.
    """
    kind = pick_kind(options.device, options.ranks)
    sizes = options.size_numbers or default_sizes(kind)
    with ExitStack() as stack:
        job = start("pipeline.benchmark.allreduce", [kind], options.ranks)
        processes = Processes([job])
        stack.callback(processes.end)
        sides = {
            _name(dtype, size): _round(processes, kind, dtype, size)
            for size in sizes
            for dtype in options.dtype_names
        } | {
            f"{dtype}_burst_sec": _round(processes, kind, dtype, sizes[0], _BURST)
            for dtype in options.dtype_names
        }
        for warm_up in sides.values():
            warm_up()
        spreads = interleave(options.rounds, sides)
    environment = {k: v for k, v in os.environ.items() if k.startswith(("HOROVOD_", "NCCL_"))}
    result = Result(
        "allreduce",
        {**vars(options), "device": kind, "sizes": sizes, "environment": environment},
        spreads=spreads,
    )
    _conclude(result, options, sizes)
    return result


def default_sizes(kind: Literal["cpu", "cuda"]) -> list[int]:
    """4 KiB, 16 KiB, ... up to the device's largest, in bytes."""
    sizes, size = [], _SMALLEST
    while size <= _LARGEST[kind]:
        sizes.append(size)
        size *= 4
    return sizes


def _sent(dtype: Dtype, size: int) -> int:
    """Bytes sent for a gradient of `size` bytes in fp32."""
    return size // 2 if dtype == "fp16" else size


def _name(dtype: Dtype, size: int) -> str:
    return f"{dtype}_{_sent(dtype, size)}_bytes_sec"


def _round(
    processes: Processes, kind: Literal["cpu", "cuda"], dtype: Dtype, size: int, tensors: int = 1
) -> Callable[[], float]:
    least, most = _REPEATS
    sent = _sent(dtype, size)
    repeats = max(least, min(most, _REPEATED_BYTES[kind] // (sent * tensors)))

    def measure() -> float:
        answers = processes.ask(size=sent, dtype=dtype, tensors=tensors, repeats=repeats)
        return float(max(answer["sec"] for answer in answers))

    return measure


def _conclude(result: Result, options: AllreduceOptions, sizes: list[int]) -> None:
    """Adds table, fits and ratios to `result`, which has the times."""
    spreads, bus = result.spreads, bus_share(options.ranks)
    rows: list[dict[str, Any]] = []
    for dtype in options.dtype_names:
        for size in sizes:
            sec = spreads[_name(dtype, size)]
            sent = _sent(dtype, size)
            algorithm = sent / sec.median
            rows.append({
                "dtype": dtype, "bytes": sent, "sec": sec.median,
                "algorithm_bytes_per_sec": algorithm, "bus_bytes_per_sec": algorithm * bus,
            })  # fmt: skip
    result.figures["by_size"] = rows
    result.figures["fit"] = {
        dtype: _fit(spreads, dtype, sizes, options.ranks) for dtype in options.dtype_names
    }
    if len(options.dtype_names) > 1:  # the same gradients, those of the largest size
        half, whole = (spreads[_name(dtype, sizes[-1])] for dtype in ("fp16", "fp32"))
        result.ratios["fp16_vs_fp32_time"] = ratio(half, whole)
    result.table = _table(rows, spreads)


def _fit(
    spreads: dict[str, Spread], dtype: Dtype, sizes: list[int], ranks: int
) -> dict[str, float | None]:
    """Latency + bytes / bandwidth through the medians; the time of one more tensor in flight."""
    times = [spreads[_name(dtype, size)].median for size in sizes]
    latency, per_byte = fit_line([_sent(dtype, size) for size in sizes], times)
    burst = spreads[f"{dtype}_burst_sec"].median
    more = burst - latency - per_byte * _sent(dtype, sizes[0]) * _BURST
    return {
        "latency_sec": latency,
        "sec_per_byte": per_byte,
        "bus_bytes_per_sec": bus_share(ranks) / per_byte if per_byte else None,
        "tensor_sec": max(0.0, more / (_BURST - 1)),
    }


def _table(rows: list[dict[str, Any]], spreads: dict[str, Spread]) -> list[tuple[str, ...]]:
    table: list[tuple[str, ...]] = [
        ("bytes", "dtype", "ms", "quartiles", "algorithm GB/s", "bus GB/s")
    ]
    for row in rows:
        low, middle, high = spreads[f"{row['dtype']}_{row['bytes']}_bytes_sec"].quartiles
        table.append((
            str(row["bytes"]), row["dtype"], f"{middle * 1e3:.3g}",
            f"{low * 1e3:.3g} .. {high * 1e3:.3g}",
            f"{row['algorithm_bytes_per_sec'] / 1e9:.3g}", f"{row['bus_bytes_per_sec'] / 1e9:.3g}",
        ))  # fmt: skip
    return table


class Timer:
    """Times the all-reduces of `world`, of tensors on `device`."""

    def __init__(self, world: World, device: torch.device) -> None:
        self._world, self._device = world, device

    def measure(self, size: int, dtype: Dtype, tensors: int, repeats: int) -> dict[str, float]:
        """Collective. Seconds until `tensors` of `size` bytes each are averaged.

        They are in flight together. The mean of `repeats` times one after the other, without
        waiting for the other ranks in between, as NCCL's own tests have it. One more goes first:
        a size that is new needs memory.
        """
        kind = _DTYPES[dtype]
        sent = [
            torch.zeros(size // kind.itemsize, dtype=kind, device=self._device)
            for _ in range(tensors)
        ]
        self._world.average_(sent)
        self._finish()
        self._world.barrier()
        started = time.perf_counter()
        for _ in range(repeats):
            self._world.average_(sent)
        self._finish()
        return {"sec": (time.perf_counter() - started) / repeats}

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def main(argv: list[str]) -> None:
    """One rank: joins the others, then serves."""
    world = connect()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if argv[0] == "cuda":
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    serve(Timer(world, device).measure)


if __name__ == "__main__":
    main(sys.argv[1:])
