"""One process of `benchmark scale`: trains some steps each time the benchmark says so.

Started as `python -m pipeline.bench.scale_rank WORKLOAD FOLDER`, the JSON of a `Workload` and an
existing folder for the job's files, which the benchmark removes: this process may be killed.
Reads the number of steps from a line of stdin, answers with a line of JSON, ends when stdin does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import cast

import torch

from pipeline.agreement import Feed
from pipeline.bench.resident import (
    ResidentLoader,
    Workload,
    resident_batches,
    resident_config,
    resident_job,
)
from pipeline.data.dali import Loader
from pipeline.distributed import connect
from pipeline.engine import train_epoch


def main(argv: list[str]) -> None:
    """Joins the other ranks if there are any, then serves."""
    work = Workload(**json.loads(argv[0]))
    world = connect()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    folder = Path(argv[1])
    config = resident_config(work, world.size, folder, threads=1)
    job = resident_job(config, world, device, folder)
    loader = ResidentLoader(resident_batches(work, device))
    feed = Feed(cast(Loader, loader), world, job.stop)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        train_epoch(job, feed, job.progress.step + int(line))
        answer = {
            "wall_sec": time.perf_counter() - wall,
            "cpu_sec": time.process_time() - cpu,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
