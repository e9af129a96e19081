"""What the program adds to a step, what watching it costs, what AMP with channels-last gains."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.benchmark.options import StepOptions
from pipeline.benchmark.resident import (
    LOG_EVERY_STEPS,
    ResidentLoader,
    Workload,
    resident_batches,
    resident_config,
    resident_job,
)
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.config import Config
from pipeline.data.dali import Batch, Loader
from pipeline.ranks.world import World
from pipeline.train.feed import Feed
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.monitor import RunMonitor
from pipeline.train.optimizer import build_optimizer
from pipeline.train.phases import Phase, Phases
from pipeline.train.precision import Precision
from pipeline.train.trainer import Trainer


def measure(options: StepOptions, device: torch.device, result: Result) -> None:
    """Images per second of `train_epoch`, of the same without timing phases and writing metrics, of
    a bare loop, and of a bare loop in row-major fp32."""
    torch.set_num_threads(options.threads)
    work = Workload(options.depth, options.size, options.images)
    batches = resident_batches(work, device)
    steps = options.steps
    with tempfile.TemporaryDirectory() as folder:
        config = resident_config(work, 1, Path(folder), options.threads)
        job = _monitored_job(config, device, Path(folder))
        each_step = replace(config.run, log_every_steps=1, name="line-each-step")
        telling = _monitored_job(replace(config, run=each_step), device, Path(folder))
        silent = _silent_job(options, work, Path(folder), device)
        bare = _bare_loop(job, batches)
        row_major = _bare_loop_in_fp32(job, batches)
        with contextlib.closing(job.monitor), contextlib.closing(telling.monitor):
            told = _timed(program_loop(telling, batches), work, steps, device)
            sides = {
                "loop_images_per_sec": _timed(program_loop(job, batches), work, steps, device),
                "line_each_step_images_per_sec": told,
                "silent_images_per_sec": _timed(program_loop(silent, batches), work, steps, device),
                "bare_images_per_sec": _timed(bare, work, steps, device),
                "fp32_row_major_images_per_sec": _timed(row_major, work, -(-steps // 4), device),
            }
            for warm_up in sides.values():  # memory, algorithms and event files the first time
                warm_up()
            spreads = interleave(options.rounds, sides)
    loop, each, unseen, plain, fp32 = spreads.values()
    result.spreads |= spreads
    result.ratios["loop_vs_bare"] = ratio(loop, plain)
    result.ratios["monitored_vs_silent"] = ratio(loop, unseen)
    result.ratios["monitoring_of_step"] = _share_of_monitoring(unseen, each, LOG_EVERY_STEPS)
    result.ratios["bf16_channels_last_vs_fp32_row_major"] = ratio(plain, fp32)


def _monitored_job(config: Config, device: torch.device, folder: Path) -> Trainer:
    """A job that writes metrics as a run does."""
    job = resident_job(config, World(), device, folder)
    config.run.path.mkdir(parents=True)
    images = job.course.total_steps * config.data.global_batch_size
    job.monitor = RunMonitor(RunFolder(config.run.path), config, 0, 0, images)
    return job


def _share_of_monitoring(silent: Spread, each_step: Spread, every: int) -> Spread:
    """What watching adds to a step, as a share of it, with a line of metrics `every` steps: a line
    at each step costs so much that it stands out from a machine's noise, in which the ratio of
    two whole loops drowns."""
    return Spread(tuple((share - 1) / every for share in ratio(silent, each_step).rounds))


class _Untimed(Phases):
    """Phases that only beat the heart."""

    def __call__(
        self, phase: Phase, step: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        self._heartbeat.beat(phase, step)
        return contextlib.nullcontext()


def _silent_job(
    options: StepOptions, work: Workload, folder: Path, device: torch.device
) -> Trainer:
    """A job that times no phase and whose first line of metrics is due after the benchmark."""
    config = resident_config(work, 1, folder, options.threads)
    never = options.steps * (options.rounds + 2)
    config = replace(config, run=replace(config.run, log_every_steps=never))
    job = resident_job(config, World(), device, folder)
    job.phases = _Untimed(job.world.heartbeat, device)
    return job


Loop = Callable[[int], None]
"""Takes as many steps as it is told."""


def _timed(loop: Loop, work: Workload, steps: int, device: torch.device) -> Callable[[], float]:
    def measure() -> float:
        _finish(device)
        started = time.perf_counter()
        loop(steps)
        _finish(device)
        return work.images * steps / (time.perf_counter() - started)

    return measure


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def program_loop(job: Trainer, batches: list[Batch]) -> Loop:
    """`train_epoch` on `batches`, which come again and again."""
    loader = cast(Loader, ResidentLoader(batches))
    feed = Feed(loader, job.world, job.stop, phases=job.phases)
    return lambda steps: job.train_epoch(feed, job.state.step + steps)


def _bare_loop(job: Trainer, batches: list[Batch]) -> Loop:
    """What anyone would write first, over the job's own kind of model, optimizer and AMP."""
    return _plain_loop(copy.deepcopy(job.state.model), job.state.precision, job, batches)


def _bare_loop_in_fp32(job: Trainer, batches: list[Batch]) -> Loop:
    """The same without AMP and without channels-last."""
    model = copy.deepcopy(job.state.model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    rows = [Batch(batch.images.contiguous(), batch.labels, batch.positions) for batch in batches]
    return _plain_loop(model, Precision("off", batches[0].images.device), job, rows)


def _plain_loop(model: nn.Module, precision: Precision, job: Trainer, batches: list[Batch]) -> Loop:
    optim = job.config.optim
    lr = job.schedule.lr(0)
    optimizer = build_optimizer(
        model, lr, optim.momentum, optim.weight_decay, optim.decay_norm_and_bias
    )
    again = cycle(batches)
    model.train()

    def loop(steps: int) -> None:
        for _ in range(steps):
            batch = next(again)
            with precision.autocast():
                loss = F.cross_entropy(model(batch.images), batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return loop
