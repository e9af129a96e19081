"""`benchmark allreduce`: the time in which ranks of this machine average a tensor, by its size.

Fast sums are the engine's own all-reduce, in fp32 or fp16; fixed are those of run.sums=fixed, which
ranks on CPUs make in memory that they share, in fp32. On CPUs also what fast sums take from ranks
that compute meanwhile, as they do in a backward pass, on the same cores, and what the engine takes
from them while nothing travels.

Bandwidths are those of NCCL's tests (doc/PERFORMANCE.md of nccl-tests): algorithm bandwidth is
bytes / seconds, bus bandwidth that times 2 (n - 1) / n for n ranks, which is what each link of a
ring carries and does not depend on n. Times are of the whole call as training makes it, with
Horovod's negotiation and its cycle; nccl-tests times the bare NCCL call.

Each rank is this module too, started as `python -m pipeline.benchmark.allreduce DEVICE`, cpu or
cuda: it times all-reduces each time the benchmark asks it to.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn

from pipeline.benchmark.options import DTYPES, Dtype, chosen, numbers
from pipeline.benchmark.processes import (
    Kind,
    Processes,
    installed_engines,
    own_device,
    pick_kind,
    serve,
    start,
)
from pipeline.benchmark.rank_options import AllreduceOptions
from pipeline.benchmark.result import Result, Spread, interleave, number, ratio
from pipeline.benchmark.scaling_model import bus_share, fit_line
from pipeline.ranks import connect
from pipeline.ranks.gradients import Compression, Summing
from pipeline.ranks.world import World

Message = Literal["fp32", "fp16", "fixed"]
"""What is averaged: by fast sums in that dtype, or by fixed ones."""

_MODULE = "pipeline.benchmark.allreduce"
_LARGEST = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
_SMALLEST = 4 * 2**10
_BURST = 64  # tensors in flight together: about the gradients of a ResNet-18
_REPEATED_BYTES = {"cpu": 2**24, "cuda": 2**30}
_REPEATS = (2, 20)
_IMAGES = (4, 64, 32, 32)
_LAYERS = 200
_TIMES_LONGER = 4
_DTYPES: dict[Message, torch.dtype] = {
    "fp32": torch.float32, "fp16": torch.float16, "fixed": torch.float32,
}  # fmt: skip


def run(options: AllreduceOptions) -> Result:
    """Seconds and bandwidths of every size and message, and a line fitted to the times of each.

    Raises ValueError if there are too few GPUs or cores.
    """
    engine = options.engine or installed_engines()[0]
    kind = pick_kind(options.device, options.ranks, [engine])
    sizes = default_sizes(kind) if options.sizes is None else numbers(options.sizes)
    sums = options.sums.split(",")
    dtypes: list[Dtype] = chosen(options.dtypes, DTYPES) if "fast" in sums else []
    fixed: list[Message] = ["fixed"] if "fixed" in sums else []
    messages: list[Message] = [*dtypes, *fixed]
    with ExitStack() as stack:
        job = start(_MODULE, [kind], options.ranks, engine)
        processes = Processes([job])
        stack.callback(processes.end)
        sides = {
            _name(message, size): _round(processes, kind, message, size)
            for size in sizes
            for message in messages
        } | {
            f"{dtype}_burst_sec": _round(processes, kind, dtype, sizes[0], _BURST)
            for dtype in dtypes
        }
        if kind == "cpu":
            sides |= {
                f"{dtype}_taken_sec": _round(processes, kind, dtype, sizes[-1], tensors=0)
                for dtype in dtypes
            }
            lone = Processes([start(_MODULE, [kind], 1) for _ in range(options.ranks)])
            stack.callback(lone.end)
            sides |= {
                "computing_sec": _round(processes, kind, "fp32", 0),
                "computing_apart_sec": _round(lone, kind, "fp32", 0),
            }
        spreads = interleave(options.rounds, sides)
    environment = {k: v for k, v in os.environ.items() if k.startswith(("HOROVOD_", "NCCL_"))}
    settings = {
        **vars(options), "device": kind, "engine": engine, "sizes": sizes,
        "environment": environment,
    }  # fmt: skip
    result = Result("allreduce", settings, spreads=spreads)
    _add_sizes(result, messages, sizes, bus_share(options.ranks))
    result.figures["fit"] = {one: _fit(spreads, one, sizes, options.ranks) for one in messages}
    if kind == "cpu":
        share = 1 - spreads["computing_apart_sec"].median / spreads["computing_sec"].median
        result.figures["engine_share"] = max(0.0, share)
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


def _sent(message: Message, size: int) -> int:
    """Bytes sent for a gradient of `size` bytes in fp32."""
    return size // 2 if message == "fp16" else size


def _name(message: Message, size: int) -> str:
    return f"{message}_{_sent(message, size)}_bytes_sec"


def _round(
    processes: Processes, kind: Kind, message: Message, size: int, tensors: int = 1
) -> Callable[[], float]:
    least, most = _REPEATS
    sent = _sent(message, size)
    repeats = max(least, min(most, _REPEATED_BYTES[kind] // max(1, sent * tensors)))

    def slowest() -> float:
        answers = processes.ask(size=sent, message=message, tensors=tensors, repeats=repeats)
        return float(max(answer["sec"] for answer in answers))

    return slowest


def _add_sizes(result: Result, messages: list[Message], sizes: list[int], bus: float) -> None:
    """Adds the figure `by_size` and the table to `result`, which has the times."""
    rows: list[dict[str, Any]] = []
    result.table = [("bytes", "message", "ms", "quartiles", "algorithm GB/s", "bus GB/s")]
    for message in messages:
        for size in sizes:
            sec, sent = result.spreads[_name(message, size)], _sent(message, size)
            speed = sent / sec.median
            rows.append({
                "message": message, "bytes": sent, "sec": sec.median,
                "algorithm_bytes_per_sec": speed, "bus_bytes_per_sec": speed * bus,
            })  # fmt: skip
            speeds = (number(speed / 1e9), number(speed * bus / 1e9))
            result.table.append((str(sent), message, *sec.cells(1e3), *speeds))
    result.figures["by_size"] = rows


def _fit(
    spreads: dict[str, Spread], message: Message, sizes: list[int], ranks: int
) -> dict[str, float | None]:
    """Fits latency + bytes / bandwidth to the medians; the time of one more tensor in flight; and
    on CPUs the seconds of computing that one second of averaging the largest size takes."""
    times = [spreads[_name(message, size)].median for size in sizes]
    latency, per_byte = fit_line([_sent(message, size) for size in sizes], times)
    more = 0.0  # fixed sums take all gradients as one
    if message != "fixed":
        burst = spreads[f"{message}_burst_sec"].median
        more = burst - latency - per_byte * _sent(message, sizes[0]) * _BURST
    taken = spreads.get(f"{message}_taken_sec")
    return {
        "latency_sec": latency,
        "sec_per_byte": per_byte,
        "bus_bytes_per_sec": bus_share(ranks) / per_byte if per_byte else None,
        "tensor_sec": max(0.0, more / (_BURST - 1)),
        "taken_share": 0.0 if taken is None else max(0.0, taken.median / times[-1]),
    }


def measure(
    world: World, device: torch.device, size: int, message: Message, tensors: int, repeats: int
) -> dict[str, float]:
    """Collective. Seconds until `tensors` of `size` bytes each are averaged; for no tensors, by how
    many seconds one of that size delays computing; for no bytes, of computing alone.

    They are in flight together. The mean of `repeats` runs in a row, without waiting for the other
    ranks in between, as in NCCL's own tests. One run comes before: a new size needs memory.
    """
    if size == 0:
        computing = Computing()
        computing(10)
        world.barrier()
        return {"sec": _seconds(partial(computing, _LAYERS))}
    if tensors == 0:
        return {"sec": _taken_sec(world, size, message, repeats)}
    once = _averaging(world, device, size, message, tensors)

    def average(times: int) -> None:
        for _ in range(times):
            once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    average(1)
    world.barrier()
    return {"sec": _seconds(lambda: average(repeats)) / repeats}


def _averaging(
    world: World, device: torch.device, size: int, message: Message, tensors: int
) -> Callable[[], None]:
    """Collective. What averages once, as training does it."""
    kind = _DTYPES[message]
    numel = size // kind.itemsize
    if message == "fixed":
        gradients = nn.ParameterList([nn.Parameter(torch.zeros(numel, device=device))])
        return world.average_gradients(gradients, Summing(sums="fixed")).synchronize
    sent = [torch.zeros(numel, dtype=kind, device=device) for _ in range(tensors)]
    return lambda: world.average_(sent)


class Computing:
    """Convolutions that stand for a backward pass."""

    def __init__(self) -> None:
        self._images = torch.randn(_IMAGES).to(memory_format=torch.channels_last)
        self._layer = nn.Conv2d(_IMAGES[1], _IMAGES[1], 3, padding=1, bias=False)

    @torch.no_grad()
    def __call__(self, layers: int) -> None:
        for _ in range(layers):
            self._layer(self._images)


def _taken_sec(world: World, size: int, message: Message, repeats: int) -> float:
    """Collective. Seconds by which a rank's computing ends later when gradients of `size` bytes are
    averaged meanwhile, by fast sums as in training. Their time alone is well below that of the
    computing."""
    compression: Compression = "fp16" if message == "fp16" else "none"
    weights = nn.Parameter(torch.zeros(size // _DTYPES[message].itemsize))
    averager = world.average_gradients(
        nn.ParameterList([weights]), Summing(sums="fast", compression=compression)
    )
    compute = Computing()

    def step(layers: int, sends: bool) -> None:
        averager.enabled = sends
        weights.sum().backward()  # type: ignore[no-untyped-call]
        compute(layers)
        if sends:
            averager.synchronize()

    step(1, sends=True)
    alone_sec = _seconds(lambda: step(0, sends=True))
    layers = math.ceil(_TIMES_LONGER * alone_sec / _seconds(lambda: compute(10)) * 10)
    (layers,) = world.maximum([layers])
    found = {False: 0.0, True: 0.0}
    for _ in range(repeats):
        for sends in found:
            world.barrier()
            found[sends] += _seconds(partial(step, layers, sends))
    return (found[True] - found[False]) / repeats


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(argv: list[str]) -> None:
    """One rank: joins the others, then serves."""
    world = connect()
    device = own_device(cast(Kind, argv[0]), world.local_rank)
    serve(partial(measure, world, device))


if __name__ == "__main__":
    main(sys.argv[1:])
