"""What the program adds to a step, what watching it costs, what AMP with channels-last gains."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.benchmark import device as devices
from pipeline.benchmark.options import StepOptions
from pipeline.benchmark.plain import PlainTraining
from pipeline.benchmark.resident import (
    LOG_EVERY_STEPS,
    Training,
    Workload,
    resident_batches,
    resident_config,
    resident_training,
)
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.ranks.world import World
from pipeline.train.optimizer import build_optimizer


def measure(options: StepOptions, device: torch.device, result: Result) -> None:
    """Images per second of `train_epoch`, of the same without timing phases and writing metrics, of
    a bare loop, and of a bare loop in row-major fp32."""
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        sides = _sides(options, device, Path(stack.enter_context(tempfile.TemporaryDirectory())),
                       stack)  # fmt: skip
        for warm_up in sides.values():  # memory, algorithms and event files the first time
            warm_up()
        spreads = interleave(options.rounds, sides)
    loop, each, unseen, plain, fp32 = spreads.values()
    result.spreads |= spreads
    result.ratios["loop_vs_bare"] = ratio(loop, plain)
    result.ratios["monitored_vs_silent"] = ratio(loop, unseen)
    result.ratios["monitoring_of_step"] = _share_of_monitoring(unseen, each, LOG_EVERY_STEPS)
    result.ratios["bf16_channels_last_vs_fp32_row_major"] = ratio(plain, fp32)


def _sides(
    options: StepOptions, device: torch.device, folder: Path, stack: ExitStack
) -> dict[str, Callable[[], float]]:
    """What measures a round of each side; `stack` closes their files in `folder`."""
    steps, images = options.steps, options.images
    batches = resident_batches(images, options.size, device)
    work = Workload(options.depth, options.size, images)
    config = resident_config(work, 1, folder, options.threads)
    # Of the silent one the first line is due after the benchmark.
    each_step, never = (
        replace(config, run=replace(config.run, name=name, log_every_steps=every))
        for name, every in (("line-each-step", 1), ("silent", steps * (options.rounds + 2)))
    )
    loop, told, silent = (
        resident_training(one, World(), device, folder, batches, timed=one is not never)
        for one in (config, each_step, never)
    )
    for monitored in (loop, told):
        stack.enter_context(monitored.monitored())
    same = [(batch.images, batch.labels) for batch in batches]
    rows = [(batch.images.contiguous(), batch.labels) for batch in batches]
    bare = _bare(loop, copy.deepcopy(loop.trainer.state.model), work.amp, same)
    model = copy.deepcopy(loop.trainer.state.model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    row_major = _bare(loop, model, "off", rows)
    rate = partial(devices.rate, device, images)
    return {
        "loop_images_per_sec": rate(steps, loop.run),
        "line_each_step_images_per_sec": rate(steps, told.run),
        "silent_images_per_sec": rate(steps, silent.run),
        "bare_images_per_sec": rate(steps, devices.again(bare.step)),
        "fp32_row_major_images_per_sec": rate(-(-steps // 4), devices.again(row_major.step)),
    }


def _bare(
    training: Training, model: nn.Module, amp: Literal["off", "bf16", "fp16"],
    batches: list[tuple[Tensor, Tensor]],
) -> PlainTraining:  # fmt: skip
    """What anyone would write first, over the training's own kind of optimizer."""
    optim = training.trainer.config.optim
    optimizer = build_optimizer(
        model, training.trainer.lr(0), optim.momentum, optim.weight_decay,
        optim.decay_norm_and_bias,
    )  # fmt: skip
    return PlainTraining(model, optimizer, amp, batches)


def _share_of_monitoring(silent: Spread, each_step: Spread, every: int) -> Spread:
    """What watching adds to a step, as a share of it, with a line of metrics `every` steps: a line
    at each step costs so much that it stands out from a machine's noise, in which the ratio of
    two whole loops drowns."""
    return Spread(tuple((share - 1) / every for share in ratio(silent, each_step).rounds))
