"""`benchmark model`: what the model of a configuration reaches when nothing waits for data.

A step of a training, without its loop: forward and loss, backward, optimizer, by the same parts.
What the loop adds is `benchmark step`.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from itertools import cycle, pairwise
from pathlib import Path

import torch
import torch.nn.functional as F

from pipeline.benchmark.configured import ModelOptions
from pipeline.benchmark.resident import Workload, resident_batches, resident_job
from pipeline.benchmark.result import Result, Spread, interleave
from pipeline.config import Config
from pipeline.model.network import network_name
from pipeline.ranks.places import choose_device, own_share, set_threads
from pipeline.ranks.world import World
from pipeline.train.trainer import Trainer

PHASES = ("forward", "backward", "optimizer")
_LR = 1e-3
_IMAGENET_CLASSES, _CIFAR_CLASSES = 1000, 10


class Stopwatch:
    """Notes moments: of the GPU's own clock as it comes to them, without waiting for it; else of
    the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._moments: list[float] = []

    def mark(self) -> None:
        """Notes this moment."""
        if self._device.type == "cuda":
            self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            self._events[-1].record()
        else:
            self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each two of the moments, which are forgotten. Waits for the last one."""
        if self._events:
            self._events[-1].synchronize()
            found = [a.elapsed_time(b) / 1e3 for a, b in pairwise(self._events)]
        else:
            found = [b - a for a, b in pairwise(self._moments)]
        self._events, self._moments = [], []
        return found


class ModelStep:
    """Steps of a job's own model, optimizer and precision on images that lie in memory."""

    def __init__(self, job: Trainer, images: int, round_sec: float) -> None:
        """`images` in each step; a round takes `round_sec`. Takes a few steps."""
        self._job, self._images = job, images
        self._watch = Stopwatch(job.decode.device)
        work = Workload(job.config.model.depth, job.config.data.image_size, images)
        self.batches = resident_batches(work, job.decode.device)
        self._next = cycle(self.batches)
        self._rounds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.steps = 2
        self.images_per_sec()  # memory, algorithms, compilation
        step_sec = images / self.images_per_sec()
        self.steps = max(1, round(round_sec / step_sec))
        self._rounds = {phase: [] for phase in PHASES}

    def images_per_sec(self) -> float:
        """One round; keeps the seconds per step of its phases too."""
        job, watch = self._job, self._watch
        job.state.model.train()
        watch.mark()
        for _ in range(self.steps):
            batch = next(self._next)
            with job.state.precision.autocast():
                loss = F.cross_entropy(
                    job.state.forward(batch.images), batch.labels,
                    label_smoothing=job.config.optim.label_smoothing,
                )  # fmt: skip
            watch.mark()
            job.state.precision.backward(loss)
            watch.mark()
            job.state.precision.step(job.state.optimizer)
            job.state.optimizer.zero_grad(set_to_none=True)
            watch.mark()
        seconds = watch.seconds()
        for place, phase in enumerate(PHASES):
            self._rounds[phase].append(sum(seconds[place :: len(PHASES)]) / self.steps)
        return self._images * self.steps / sum(seconds)

    def spreads(self) -> dict[str, Spread]:
        """Seconds of a step's phases, by round: forward with the loss, backward, optimizer."""
        return {f"{phase}_sec": Spread(tuple(found)) for phase, found in self._rounds.items()}


def run(options: ModelOptions) -> Result:
    """Images per second of one rank, seconds of the phases, and their shares as ratios.

    Raises `ValueError` for a device or a norm backend that is not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = one_rank_job(options, Path(folder))
        step = ModelStep(job, options.images, options.round_sec)
        speeds = interleave(options.rounds, {"model_images_per_sec": step.images_per_sec})
    result = Result("model", options.settings() | {"device": str(job.decode.device)})
    result.figures = describe(options, job) | {"steps_per_round": step.steps}
    result.spreads = speeds | step.spreads()
    result.ratios = shares(step)
    result.table = [("", "img/s or ms", "quartiles", "share"), *rows(result)]
    return result


def one_rank_job(options: ModelOptions, folder: Path) -> Trainer:
    """The configuration's job for one rank on this machine without its data; files in `folder`.

    A step of it has no more than one micro-batch, and it writes no checkpoints.
    """
    world, config = World(), options.config
    share = own_share(world)
    set_threads(config, share)
    device = choose_device(config.run.device, share.gpu)
    data = dataclasses.replace(
        config.data, local_batch_size=options.images, global_batch_size=options.images,
        decode="auto", mean="imagenet",
    )  # fmt: skip
    run_ = dataclasses.replace(
        config.run, dir=str(folder), checkpoint_every_steps=None, checkpoint_every_sec=None
    )
    alone = dataclasses.replace(config, data=data, run=run_)
    # Labels and pixels are noise: a rate that keeps every loss finite.
    alone = dataclasses.replace(alone, optim=dataclasses.replace(config.optim, base_lr=_LR))
    return resident_job(alone, world, device, folder, _classes(config))


def describe(options: ModelOptions, job: Trainer) -> dict[str, str | int]:
    """What was run, for the table's end and the JSON."""
    threads = torch.get_num_threads()
    place = (
        str(job.decode.device)
        if job.decode.device.type == "cuda"
        else f"{threads} thread{'s' if threads > 1 else ''}"
    )
    config = options.config
    what = (
        f"{network_name(config.model)}, {options.images} images of {config.data.image_size} px a "
        f"step, AMP {config.optim.amp}, {place}"
    )
    return {"measured": what, "images_per_step": options.images}


def shares(step: ModelStep) -> dict[str, Spread | float]:
    """`<phase>_of_step` of each phase, by round."""
    spreads = list(step.spreads().values())
    totals = [sum(found) for found in zip(*(one.rounds for one in spreads), strict=True)]
    return {
        f"{phase}_of_step": Spread(tuple(a / b for a, b in zip(spread.rounds, totals, strict=True)))
        for phase, spread in zip(PHASES, spreads, strict=True)
    }


def rows(result: Result) -> list[tuple[str, ...]]:
    """The model's rows of a table: its speed, then the phases in ms with their shares."""
    low, middle, high = result.spreads["model_images_per_sec"].quartiles
    found: list[tuple[str, ...]] = [("model", f"{middle:.4g}", f"{low:.4g} .. {high:.4g}", "")]
    for phase in PHASES:
        low, middle, high = result.spreads[f"{phase}_sec"].quartiles
        share = result.ratio_value(f"{phase}_of_step")
        ms = f"{middle * 1e3:.4g} ms"
        found.append((f"  {phase}", ms, f"{low * 1e3:.4g} .. {high * 1e3:.4g}", f"{share:.1%}"))
    return found


def speed_row(name: str, speed: Spread) -> tuple[str, ...]:
    """A row of a table with img/s: median and quartiles."""
    low, middle, high = (f"{one:.4g}" if one < 1e4 else f"{one:.0f}" for one in speed.quartiles)
    return name, middle, f"{low} .. {high}", ""


def _classes(config: Config) -> int:
    return _CIFAR_CLASSES if config.model.family == "cifar" else _IMAGENET_CLASSES
