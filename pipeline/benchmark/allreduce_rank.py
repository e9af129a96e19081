"""One rank of `benchmark allreduce`: times all-reduces each time the benchmark says so.

Started as `python -m pipeline.benchmark.allreduce_rank DEVICE`, cpu or cuda.
"""

from __future__ import annotations

import sys
import time

import torch

from pipeline.benchmark.crew import serve
from pipeline.benchmark.rank_options import Dtype
from pipeline.ranks import connect
from pipeline.ranks.world import World

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


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
        kind = DTYPES[dtype]
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
    """Joins the other ranks, then serves."""
    world = connect()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if argv[0] == "cuda":
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    serve(Timer(world, device).measure)


if __name__ == "__main__":
    main(sys.argv[1:])
