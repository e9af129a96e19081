"""`benchmark scale`: ranks against processes that do not communicate, and one alone.

Weak scaling: every rank has as many images as one alone. Strong: all together have. Late: strong,
and every decision of the ranks takes 10 ms more. Weak scaling is measured for every way in which
ranks can communicate and sum, the other two for the first. `processes.py` describes how the sides
take turns.

Each process is this module too, started as `python -m pipeline.benchmark.scale PART FOLDER`, the
JSON of a `Part` and an existing folder for the training's files, which the benchmark removes: the
process may be killed. It trains some steps each time the benchmark asks it to.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from pipeline.benchmark.options import ENGINES, SUMS, Sums, chosen, numbers
from pipeline.benchmark.processes import (
    Kind,
    Processes,
    installed_engines,
    own_device,
    pick_kind,
    serve,
    start,
)
from pipeline.benchmark.rank_options import ScaleOptions
from pipeline.benchmark.resident import (
    Training,
    resident_config,
    resident_training,
    training_from_files,
)
from pipeline.benchmark.result import Result, Spread, by_round, interleave, number, ratio
from pipeline.ranks import connect
from pipeline.ranks.local import LocalRanks
from pipeline.ranks.world import World
from pipeline.system.launched import Engine
from pipeline.system.machine import available_cores

_LATE_SEC = 0.01
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
    sums: Literal["auto", "fixed", "fast"] = "auto"
    """The order of sums, as run.sums."""
    late_sec: float = 0.0
    """By how much every decision of the ranks comes later than it would."""


@dataclass(frozen=True)
class Way:
    """What ranks communicate over, and in which order they sum."""

    engine: Engine
    sums: Sums

    def __str__(self) -> str:
        return f"{self.engine}_{self.sums}"


@dataclass(frozen=True)
class Job:
    """Ranks of one side, with `images` each."""

    ranks: int
    images: int
    way: Way
    late_sec: float = 0.0


def ways(options: ScaleOptions, kind: Kind) -> list[Way]:
    """Those to measure, that of a training without settings first."""
    engines = chosen(options.engines, ENGINES) if options.engines else installed_engines()
    sums = chosen(options.sums, SUMS) if options.sums else list(SUMS)
    if kind == "cuda":  # what run.sums=auto means there
        sums.sort()
    return [Way(engine, order) for order in sums for engine in engines]


def jobs(options: ScaleOptions, measured: Sequence[Way]) -> dict[str, Job]:
    """The sides whose ranks communicate. Those without a way in their name go the first."""
    found, images = {}, options.images
    counts = [count for count in numbers(options.ranks) if count > 1]
    for count in counts:
        for way in measured:
            name = f"weak_{count}" if way == measured[0] else f"weak_{count}_{way}"
            found[name] = Job(count, images, way)
        found[f"strong_{count}"] = Job(count, images // count, measured[0])
    for count in counts[-1:]:
        found[f"late_{count}"] = Job(count, images // count, measured[0], _LATE_SEC)
    return found


def run(options: ScaleOptions) -> Result:
    """Images per second of every side, how its steps' time is spent, and the sides' ratios.

    Raises ValueError if there are too few GPUs or cores.
    """
    counts = numbers(options.ranks)
    engines = chosen(options.engines, ENGINES) if options.engines else installed_engines()
    kind = pick_kind(options.device, counts[-1], engines)
    measured = ways(options, kind)
    communicating = jobs(options, measured)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = _sides(options, kind, communicating, folder, stack)
        spreads = interleave(options.rounds, sides)
    environment = {name: value for name, value in os.environ.items() if name.startswith("HOROVOD_")}
    settings = {
        **vars(options), "device": kind, "cores": available_cores(), "environment": environment,
        "ways": {name: asdict(job.way) for name, job in communicating.items()},
    }  # fmt: skip
    result = Result("scale", settings, spreads=spreads)
    if communicating:
        first = measured[0]
        result.figures["measured"] = (
            f"over {first.engine} with run.sums={first.sums}, where a side's name says nothing else"
        )
    _add_ratios(result, [count for count in counts if count > 1], measured)
    result.table = _table(result, list(sides))
    return result


def _sides(
    options: ScaleOptions, kind: Kind, communicating: dict[str, Job], folder: Path, stack: ExitStack
) -> dict[str, Callable[[], dict[str, float]]]:
    """Functions that measure a round of each side; `stack` ends their processes.

    Each side is warmed up, and so stopped, before the next is started: all at once they would be
    several times as many processes as cores.
    """
    images, counts = options.images, numbers(options.ranks)

    def begun(name: str, part: Part, ranks: int, engine: Engine = "torch") -> LocalRanks:
        (folder / name).mkdir()
        arguments = [json.dumps(asdict(part)), str(folder / name)]
        job = start("pipeline.benchmark.scale", arguments, ranks, engine)
        stack.callback(Processes([job]).end)
        return job

    def side(name: str, started: list[LocalRanks], images: int) -> Callable[[], dict[str, float]]:
        processes = Processes(started)
        processes.ask(steps=1)
        return lambda: _round(name, processes, images, options.steps)

    one = Part(options.depth, options.size, images, kind, 0, options.data)
    lone = [begun(f"lone{i}", dataclasses.replace(one, gpu=i), 1) for i in range(counts[-1])]
    several = [count for count in counts if count > 1]
    # The most first, which stops all that are alone.
    apart = {n: side(f"apart_{n}", lone[:n], images) for n in reversed(several)}
    sides = {"alone": side("alone", lone[:1], images)}
    sides |= {f"apart_{count}": apart[count] for count in several}
    for name, job in communicating.items():
        part = dataclasses.replace(one, images=job.images, sums=job.way.sums, late_sec=job.late_sec)
        sides[name] = side(name, [begun(name, part, job.ranks, job.way.engine)], job.images)
    return sides


def _round(name: str, processes: Processes, images: int, steps: int) -> dict[str, float]:
    """Images per second of all processes together, each by its own clock; other measurements are
    the mean over the processes."""
    answers = processes.ask(steps=steps)
    speed = sum(images / answer["step_sec"] for answer in answers)
    means = {key: statistics.fmean(answer[key] for answer in answers) for key in answers[0]}
    return {f"{name}_{key}": value for key, value in ({"images_per_sec": speed} | means).items()}


def _add_ratios(result: Result, counts: list[int], measured: list[Way]) -> None:
    for count in counts:
        result.ratios |= _scaling(result.spreads, count, measured)
    for count in counts[-1:]:
        late, usual = (result.spreads[f"{side}_{count}_step_sec"] for side in ("late", "strong"))
        result.ratios["decision_delay_of_step"] = by_round(lambda a, b: a / b - 1, late, usual)


def _scaling(spreads: dict[str, Spread], count: int, measured: list[Way]) -> dict[str, Spread]:
    """The ratios of `count` ranks, by name."""
    alone = spreads["alone_images_per_sec"]
    weak, strong, apart = (
        spreads[f"{side}_{count}_images_per_sec"] for side in ("weak", "strong", "apart")
    )
    times_alone = Spread(tuple(count * speed for speed in alone.rounds))
    found = {
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
    by_way = {measured[0]: weak}
    for way in measured[1:]:
        by_way[way] = spreads[f"weak_{count}_{way}_images_per_sec"]
        found[f"weak_scaling_{count}_{way}"] = ratio(by_way[way], apart)
    for engine in dict.fromkeys(way.engine for way in measured):
        pair = [by_way.get(Way(engine, order)) for order in ("fixed", "fast")]
        if pair[0] is not None and pair[1] is not None:
            found[f"fixed_vs_fast_{count}_{engine}"] = ratio(pair[0], pair[1])
    return found


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
    world = connect(quiet=part.sums == "fixed" and part.kind == "cpu")
    if part.late_sec:
        delay_decisions(world, part.late_sec)
    device = own_device(part.kind, part.gpu + world.local_rank)
    training = _training(part, world, device, Path(argv[1]))
    serve(lambda steps: _train(training, steps))


def delay_decisions(world: World, sec: float) -> None:
    """From now on every `start_maximum` of `world` has its result `sec` later than it would."""
    start_maximum, waiting = world.start_maximum, ThreadPoolExecutor(1)

    def start_late(values: Sequence[int]) -> Callable[[], list[int]]:
        wait = start_maximum(values)

        def later() -> list[int]:
            found = wait()
            time.sleep(sec)
            return found

        return waiting.submit(later).result

    world.start_maximum = start_late  # type: ignore[method-assign]


def _training(part: Part, world: World, device: torch.device, folder: Path) -> Training:
    config = resident_config(part.depth, part.size, part.images, folder, ranks=world.size)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, sums=part.sums))
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
