"""`benchmark allreduce`: the time in which ranks of this machine average a tensor, by its size.

Bandwidths are those of NCCL's tests (doc/PERFORMANCE.md of nccl-tests): algorithm bandwidth is
bytes / seconds, bus bandwidth that times 2 (n - 1) / n for n ranks, which is what each link of a
ring carries and does not depend on n. Times are of the whole call as training makes it, with
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
from functools import partial
from typing import Any, cast

import torch

from pipeline.benchmark.options import DTYPES, AllreduceOptions, Dtype, chosen, numbers
from pipeline.benchmark.processes import Kind, Processes, own_device, pick_kind, serve, start
from pipeline.benchmark.result import Result, Spread, interleave, number, ratio
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
    """Seconds and bandwidths of every size and dtype, and a line fitted to the times of each dtype.

    Raises ValueError if there are too few GPUs or cores.
    """
    kind = pick_kind(options.device, options.ranks)
    sizes = default_sizes(kind) if options.sizes is None else numbers(options.sizes)
    dtypes = chosen(options.dtypes, DTYPES)
    with ExitStack() as stack:
        processes = Processes([start("pipeline.benchmark.allreduce", [kind], options.ranks)])
        stack.callback(processes.end)
        sides = {
            _name(dtype, size): _round(processes, kind, dtype, size)
            for size in sizes
            for dtype in dtypes
        } | {
            f"{dtype}_burst_sec": _round(processes, kind, dtype, sizes[0], _BURST)
            for dtype in dtypes
        }
        spreads = interleave(options.rounds, sides)
    environment = {k: v for k, v in os.environ.items() if k.startswith(("HOROVOD_", "NCCL_"))}
    settings = {**vars(options), "device": kind, "sizes": sizes, "environment": environment}
    result = Result("allreduce", settings, spreads=spreads)
    _add_sizes(result, dtypes, sizes, bus_share(options.ranks))
    result.figures["fit"] = {d: _fit(spreads, d, sizes, options.ranks) for d in dtypes}
    if len(dtypes) > 1:  # the same gradients, of the largest size
        half, whole = (spreads[_name(dtype, sizes[-1])] for dtype in ("fp16", "fp32"))
        result.ratios["fp16_vs_fp32_time"] = ratio(half, whole)
    return result


def default_sizes(kind: Kind) -> list[int]:
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
    processes: Processes, kind: Kind, dtype: Dtype, size: int, tensors: int = 1
) -> Callable[[], float]:
    least, most = _REPEATS
    sent = _sent(dtype, size)
    repeats = max(least, min(most, _REPEATED_BYTES[kind] // (sent * tensors)))

    def slowest() -> float:
        answers = processes.ask(size=sent, dtype=dtype, tensors=tensors, repeats=repeats)
        return float(max(answer["sec"] for answer in answers))

    return slowest


def _add_sizes(result: Result, dtypes: list[Dtype], sizes: list[int], bus: float) -> None:
    """Adds the figure `by_size` and the table to `result`, which has the times."""
    rows: list[dict[str, Any]] = []
    result.table = [("bytes", "dtype", "ms", "quartiles", "algorithm GB/s", "bus GB/s")]
    for dtype in dtypes:
        for size in sizes:
            sec, sent = result.spreads[_name(dtype, size)], _sent(dtype, size)
            speed = sent / sec.median
            rows.append({
                "dtype": dtype, "bytes": sent, "sec": sec.median,
                "algorithm_bytes_per_sec": speed, "bus_bytes_per_sec": speed * bus,
            })  # fmt: skip
            speeds = (number(speed / 1e9), number(speed * bus / 1e9))
            result.table.append((str(sent), dtype, *sec.cells(1e3), *speeds))
    result.figures["by_size"] = rows


def _fit(
    spreads: dict[str, Spread], dtype: Dtype, sizes: list[int], ranks: int
) -> dict[str, float | None]:
    """Fits latency + bytes / bandwidth to the medians; the time of one more tensor in flight."""
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


def measure(
    world: World, device: torch.device, size: int, dtype: Dtype, tensors: int, repeats: int
) -> dict[str, float]:
    """Collective. Seconds until `tensors` of `size` bytes each are averaged.

    They are in flight together. The mean of `repeats` runs in a row, without waiting for the other
    ranks in between, as in NCCL's own tests. One run comes before: a new size needs memory.
    """
    kind = _DTYPES[dtype]
    sent = [torch.zeros(size // kind.itemsize, dtype=kind, device=device) for _ in range(tensors)]

    def average(times: int) -> None:
        for _ in range(times):
            world.average_(sent)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    average(1)
    world.barrier()
    started = time.perf_counter()
    average(repeats)
    return {"sec": (time.perf_counter() - started) / repeats}


def main(argv: list[str]) -> None:
    """One rank: joins the others, then serves."""
    world = connect()
    device = own_device(cast(Kind, argv[0]), world.local_rank)
    serve(partial(measure, world, device))


if __name__ == "__main__":
    main(sys.argv[1:])
