"""One process of `benchmark scale`: trains some steps each time the benchmark says so.

Started as `python -m pipeline.benchmark.scale_rank PART FOLDER`, the JSON of a `Part` and an
existing folder for the job's files, which the benchmark removes: this process may be killed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch

from pipeline.benchmark.crew import serve
from pipeline.benchmark.resident import (
    ResidentLoader,
    Workload,
    resident_batches,
    resident_config,
    resident_job,
)
from pipeline.data.dali import Batch, Loader
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.manifest import open_manifest
from pipeline.ranks import connect
from pipeline.ranks.averaging import GradientAverager
from pipeline.ranks.places import Share
from pipeline.ranks.stop import StopSignal
from pipeline.ranks.world import World
from pipeline.train.feed import Decision, Feed
from pipeline.train.trainer import Trainer


@dataclass(frozen=True)
class Part:
    """What one process does: `work`, on the GPU `gpu` + its local rank where `kind` is cuda."""

    work: Workload
    kind: Literal["cpu", "cuda"]
    gpu: int
    data: str | None
    """Root of a data set; None: the images lie in memory."""


@dataclass
class Phases:
    """Where the time of a round's steps went, in seconds."""

    data: float = 0.0
    """Waited for the loader."""
    agreement: float = 0.0
    """Waited for the other ranks before a batch is used."""
    exposed: float = 0.0
    """Waited for averages after backward had ended, be it for a rank whose backward had not."""
    computed: list[float] = field(default_factory=list)
    """Forward and backward of each step."""


class TimedFeed(Feed):
    """A feed that notes its waits in `phases`."""

    def __init__(self, loader: Loader, world: World, stop: StopSignal) -> None:
        super().__init__(loader, world, stop)
        self.phases = Phases()
        self.handed_over = 0.0
        """When the last batch was."""

    def next(self, *step: Any, **more: Any) -> tuple[Batch, Decision]:
        started = time.perf_counter()
        found = super().next(*step, **more)
        self.handed_over = time.perf_counter()
        self.phases.data += self.wait_sec
        self.phases.agreement += self.handed_over - started - self.wait_sec
        return found


class TimedAverager(GradientAverager):
    """The job's averager, with the time after backward noted in `feed.phases`.

    A step has one micro-batch here, so that `enabled` never changes.
    """

    def __init__(self, averager: GradientAverager, feed: TimedFeed, device: torch.device) -> None:
        self._averager, self._feed, self._device = averager, feed, device

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            # Backward's kernels still run when its call returns. Waiting for them here, and for
            # none of NCCL's, costs nothing: the averager would wait for both.
            ended = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ended.record()
            ended.synchronize()
        started = time.perf_counter()
        self._averager.synchronize()
        self._feed.phases.computed.append(started - self._feed.handed_over)
        self._feed.phases.exposed += time.perf_counter() - started


def main(argv: list[str]) -> None:
    """Joins the other ranks if there are any, then serves."""
    told = json.loads(argv[0])
    part = Part(**told | {"work": Workload(**told["work"])})
    world = connect()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if part.kind == "cuda":
        device = torch.device("cuda", part.gpu + world.local_rank)
        torch.cuda.set_device(device)
    job, loader = _prepared(part, world, device, Path(argv[1]))
    feed = TimedFeed(loader, world, job.stop)
    job.averager = TimedAverager(job.averager, feed, device)
    serve(lambda steps: _train(job, feed, steps))


def _prepared(
    part: Part, world: World, device: torch.device, folder: Path
) -> tuple[Trainer, Loader]:
    """A job and where its batches come from."""
    config = resident_config(part.work, world.size, folder, threads=1)
    if part.data is None:
        loader = ResidentLoader(resident_batches(part.work, device))
        return resident_job(config, world, device, folder), cast(Loader, loader)
    data = dataclasses.replace(config.data, root=part.data, decode="auto")
    config = dataclasses.replace(config, data=data)
    root = Path(part.data)
    world.on_rank0(lambda: len(open_manifest(root, "train", folder)))  # scans the tree once
    train_set = open_manifest(root, "train", folder)
    share = Share(cores=1, gpu=device.index or 0)
    decode = choose_decoding(config, device, share, (train_set,))
    job = Trainer(config, world, decode, train_set, train_set, StopSignal())
    return job, job.loaders.train(0)


def _train(job: Trainer, feed: TimedFeed, steps: int) -> dict[str, float]:
    feed.phases = Phases()
    wall, cpu = time.perf_counter(), time.process_time()
    job.train_epoch(feed, job.state.step + steps)
    if job.decode.device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    phases = feed.phases
    waited = phases.data + phases.agreement + phases.exposed
    return {
        "wall_sec": wall,
        "cpu_sec": cpu,
        "data_wait_share": phases.data / wall,
        "agreement_share": phases.agreement / wall,
        "exposed_communication_share": phases.exposed / wall,
        "compute_share": 1 - waited / wall,
        "forward_backward_sec": statistics.fmean(phases.computed),
        "jitter_sec": statistics.pstdev(phases.computed),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
