"""`benchmark scale`: Horovod ranks against processes that do not communicate, and one alone.

Weak scaling: every rank has as many images as one alone. Strong: all together have. `processes.py`
describes how the sides take turns.

Each process is this module too, started as `python -m pipeline.benchmark.scale PART FOLDER`, the
JSON of a `Part` and an existing folder for the training's files, which the benchmark removes: the
process may be killed. It trains some steps each time the benchmark asks it to.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipeline.benchmark.options import ScaleOptions, numbers
from pipeline.benchmark.processes import Kind, Processes, own_device, pick_kind, serve, start
from pipeline.benchmark.resident import (
    Training,
    resident_config,
    resident_training,
    training_from_files,
)
from pipeline.benchmark.result import Result, Spread, interleave, number, ratio
from pipeline.ranks import connect
from pipeline.ranks.local import LocalRanks
from pipeline.ranks.world import World

_SHARES = ("data_wait", "agreement", "compute", "exposed_communication")
_WAITS = {
    "data_wait": "data_wait", "agreement": "agreement", "exposed_communication": "communication",
}  # fmt: skip
"""Shares of a step by phase: waiting for the loader, for the other ranks before a batch is used,
and after backward for averages, which may mean waiting for a rank whose backward has not ended."""


@dataclass(frozen=True)
class Part:
    """The task of one process: steps of ResNet-`depth` with `images` of `size` pixels, on the GPU
    `gpu` + its local rank where `kind` is cuda."""

    depth: int
    size: int
    images: int
    kind: Kind
    gpu: int
    data: str | None
    """Root of a data set; None: the images lie in memory."""


def run(options: ScaleOptions) -> Result:
    """Images per second of every side, how its steps' time is spent, and the sides' ratios.

    Raises ValueError if there are too few GPUs or cores.
    """
    counts = numbers(options.ranks)
    kind = pick_kind(options.device, counts[-1])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = _sides(options, kind, folder, stack)
        spreads = interleave(options.rounds, sides)
    environment = {name: value for name, value in os.environ.items() if name.startswith("HOROVOD_")}
    settings = {**vars(options), "device": kind, "environment": environment}
    result = Result("scale", settings, spreads=spreads)
    _add_ratios(result, [count for count in counts if count > 1])
    result.table = _table(result, list(sides))
    return result


def _sides(
    options: ScaleOptions, kind: Kind, folder: Path, stack: ExitStack
) -> dict[str, Callable[[], dict[str, float]]]:
    """Functions that measure a round of each side; `stack` ends their processes.

    Each side is warmed up, and so stopped, before the next is started: all at once they would be
    several times as many processes as cores.
    """
    images, counts = options.images, numbers(options.ranks)

    def begun(name: str, images: int, ranks: int, gpu: int = 0) -> LocalRanks:
        part = Part(options.depth, options.size, images, kind, gpu, options.data)
        (folder / name).mkdir()
        arguments = [json.dumps(asdict(part)), str(folder / name)]
        job = start("pipeline.benchmark.scale", arguments, ranks)
        stack.callback(Processes([job]).end)
        return job

    def side(name: str, jobs: list[LocalRanks], images: int) -> Callable[[], dict[str, float]]:
        processes = Processes(jobs)
        processes.ask(steps=1)
        return lambda: _round(name, processes, images, options.steps)

    lone = [begun(f"lone{i}", images, 1, i) for i in range(counts[-1])]
    several = [count for count in counts if count > 1]
    # The most first, which stops all that are alone.
    apart = {n: side(f"apart_{n}", lone[:n], images) for n in reversed(several)}
    sides = {"alone": side("alone", lone[:1], images)}
    for count in several:
        sides[f"apart_{count}"] = apart[count]
        weak = [begun(f"weak{count}", images, count)]
        sides[f"weak_{count}"] = side(f"weak_{count}", weak, images)
        share = images // count
        strong = [begun(f"strong{count}", share, count)]
        sides[f"strong_{count}"] = side(f"strong_{count}", strong, share)
    return sides


def _round(name: str, processes: Processes, images: int, steps: int) -> dict[str, float]:
    """Images per second of all processes together, each by its own clock; other measurements are
    the mean over the processes."""
    answers = processes.ask(steps=steps)
    speed = sum(images / answer["step_sec"] for answer in answers)
    means = {key: statistics.fmean(answer[key] for answer in answers) for key in answers[0]}
    return {f"{name}_{key}": value for key, value in ({"images_per_sec": speed} | means).items()}


def _add_ratios(result: Result, counts: list[int]) -> None:
    spreads = result.spreads
    alone = spreads["alone_images_per_sec"]
    for count in counts:
        weak, strong, apart = (
            spreads[f"{side}_{count}_images_per_sec"] for side in ("weak", "strong", "apart")
        )
        times_alone = Spread(tuple(count * speed for speed in alone.rounds))
        result.ratios |= {
            f"weak_scaling_{count}": ratio(weak, apart),
            # Less affected by whatever else runs on the machine; a spinning thread counts as work.
            f"weak_scaling_{count}_by_cpu_time": ratio(
                spreads[f"apart_{count}_cpu_sec_per_step"],
                spreads[f"weak_{count}_cpu_sec_per_step"],
            ),
            # Against one process that has the machine's memory and caches for itself.
            f"weak_scaling_{count}_of_alone": ratio(weak, times_alone),
            f"strong_scaling_{count}_of_alone": ratio(strong, times_alone),
        }


def _table(result: Result, sides: list[str]) -> list[tuple[str, ...]]:
    heads = [name.replace("_", " ") for name in _SHARES]
    table: list[tuple[str, ...]] = [("", "img/s", "quartiles", "step ms", *heads)]
    for side in sides:
        step_ms = number(result.spreads[f"{side}_step_sec"].median * 1e3)
        shares = [result.spreads[f"{side}_{share}_share"].median for share in _SHARES]
        speed = result.spreads[f"{side}_images_per_sec"].cells()
        table.append((side, *speed, step_ms, *(f"{share:.1%}" for share in shares)))
    return table


def main(argv: list[str]) -> None:
    """One process: joins the other ranks if there are any, then serves."""
    part = Part(**json.loads(argv[0]))
    world = connect()
    device = own_device(part.kind, part.gpu + world.local_rank)
    training = _training(part, world, device, Path(argv[1]))
    serve(lambda steps: _train(training, steps))


def _training(part: Part, world: World, device: torch.device, folder: Path) -> Training:
    config = resident_config(part.depth, part.size, part.images, folder, ranks=world.size)
    if part.data is None:
        return resident_training(config, world, device)
    return training_from_files(Path(part.data), config, world, device, folder)


def _train(training: Training, steps: int) -> dict[str, float]:
    """How the time of `steps` steps is spent, by the program's own phases.

    They are read after each step. That waits for the GPU, as the averager has done just before.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    found = [training.phase_seconds(1) for _ in range(steps)]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    waits = {
        f"{name}_share": sum(one[phase] for one in found) / wall for name, phase in _WAITS.items()
    }
    computed = [one["forward"] + one["backward"] for one in found]
    return {
        "cpu_sec_per_step": cpu / steps,
        "step_sec": wall / steps,
        "forward_backward_sec": statistics.fmean(computed),
        "jitter_sec": statistics.pstdev(computed),
        **waits,
        "compute_share": 1 - sum(waits.values()),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
