"""What a save costs the training loop: written before the next step, and by a thread beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import torch

from pipeline.benchmark import device as devices
from pipeline.benchmark.resident import Training
from pipeline.benchmark.result import Result, interleave, ratio


def measure_saves(training: Training, images: int, rounds: int, result: Result) -> None:
    """Adds to `result` for how long a save holds up the loop, synchronous (as the last one of a
    start is) and in the background, whose ratio is what is left of it; and the speed of steps of
    `images` while such a write is in flight, against as many steps after it.

    Every save is of the same state, into the folder of the training's configuration.
    """
    with closing(training.trainer.writer):
        spreads = interleave(rounds, {"saves": partial(_round, training, images)})
    result.spreads |= spreads
    exposed = spreads["save_background_exposed_sec"], spreads["save_synchronous_exposed_sec"]
    result.ratios["save_background_vs_synchronous"] = ratio(*exposed)
    speeds = spreads["step_while_writing_images_per_sec"], spreads["step_alone_images_per_sec"]
    result.ratios["step_while_writing_vs_alone"] = ratio(*speeds)


def _round(training: Training, images: int) -> dict[str, float]:
    trainer = training.trainer
    synchronous = _blocked_sec(training.device, lambda: trainer.save(last=True))
    background = _blocked_sec(training.device, trainer.save)
    steps = 0

    def while_writing() -> None:
        nonlocal steps
        while steps == 0 or trainer.writer.in_flight:
            training.run(1)
            steps += 1

    def alone() -> None:
        for _ in range(steps):
            training.run(1)

    writing_sec = devices.seconds(training.device, while_writing)
    trainer.writer.wait()
    alone_sec = devices.seconds(training.device, alone)
    return {
        "save_synchronous_exposed_sec": synchronous,
        "save_background_exposed_sec": background,
        "step_while_writing_images_per_sec": images * steps / writing_sec,
        "step_alone_images_per_sec": images * steps / alone_sec,
    }


def _blocked_sec(device: torch.device, save: Callable[[], None]) -> float:
    """Seconds for which the host is in `save`, with nothing of a step left to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    save()
    return time.perf_counter() - started
