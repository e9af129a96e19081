"""`benchmark scale`: Horovod ranks against processes that do not communicate, and one alone.

Weak scaling: every rank has as many images as one alone. Strong: all together have. `processes.py`
says how the sides take turns.

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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pipeline.benchmark.processes import Processes, pick_kind, serve, start
from pipeline.benchmark.rank_options import ScaleOptions
from pipeline.benchmark.resident import (
    Training,
    Workload,
    resident_config,
    resident_training,
    training_from_files,
)
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.ranks import connect
from pipeline.ranks.local import LocalRanks
from pipeline.ranks.world import World

_WARM_UP_STEPS = 4
_SHARES = ("data_wait", "agreement", "compute", "exposed_communication")
_WAITS = {
    "data_wait": "data_wait", "agreement": "agreement", "exposed_communication": "communication",
}  # fmt: skip
"""Shares of a step that are a phase's: what a rank waits for the loader, for the other ranks before
a batch is used, and after backward for averages, be it for a rank whose backward has not ended."""
_MEASURED = ("cpu_sec_per_step", "step_sec", "forward_backward_sec", "jitter_sec")


@dataclass(frozen=True)
class Part:
    """What one process does: `work`, on the GPU `gpu` + its local rank where `kind` is cuda."""

    work: Workload
    kind: Literal["cpu", "cuda"]
    gpu: int
    data: str | None
    """Root of a data set; None: the images lie in memory."""


def run(options: ScaleOptions) -> Result:
    """Images per second of every side, where its steps' time goes, and the sides' ratios.

    Raises ValueError: there are too few GPUs or cores.
    """
    kind = pick_kind(options.device, options.rank_numbers[-1])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = _sides(options, kind, folder, stack)
        speeds = interleave(options.rounds, {name: side.measure for name, side in sides.items()})
    environment = {name: value for name, value in os.environ.items() if name.startswith("HOROVOD_")}
    result = Result("scale", {**vars(options), "device": kind, "environment": environment})
    for name, side in sides.items():
        result.spreads[f"{name}_images_per_sec"] = speeds[name]
        result.spreads |= {f"{name}_{key}": spread for key, spread in side.spreads().items()}
    _add_ratios(result, options.rank_numbers)
    result.table = _table(result, list(sides))
    return result


class _Side:
    """Processes that train `images` each in a step, measured together."""

    def __init__(self, processes: Processes, images: int, steps: int) -> None:
        self._processes, self._images, self._steps = processes, images, steps
        self._rounds: list[dict[str, float]] = []

    def warm_up(self) -> None:
        """Memory, algorithms and connections the first time."""
        self._processes.ask(steps=_WARM_UP_STEPS)

    def measure(self) -> float:
        """Images per second of all together over a round, each by its own clock."""
        answers = self._processes.ask(steps=self._steps)
        mean = {key: statistics.fmean(a[key] for a in answers) for key in answers[0]}
        mean["cpu_sec_per_step"] = mean.pop("cpu_sec") / self._steps
        mean["step_sec"] = mean.pop("wall_sec") / self._steps
        self._rounds.append(mean)
        return float(sum(self._images * self._steps / answer["wall_sec"] for answer in answers))

    def spreads(self) -> dict[str, Spread]:
        """What was measured besides, mean over the processes."""
        names = [*_MEASURED, *(f"{share}_share" for share in _SHARES)]
        return {name: Spread(tuple(found[name] for found in self._rounds)) for name in names}


def _sides(
    options: ScaleOptions, kind: Literal["cpu", "cuda"], folder: Path, stack: ExitStack
) -> dict[str, _Side]:
    """All sides, started one after the other and warm; `stack` ends them."""
    counts = [count for count in options.rank_numbers if count > 1]
    work = Workload(options.depth, options.size, options.images)

    def begun(name: str, images: int, ranks: int, gpu: int = 0) -> LocalRanks:
        job = _start(dataclasses.replace(work, images=images), ranks, folder / name, kind, gpu,
                     options.data)  # fmt: skip
        stack.callback(Processes([job]).end)
        return job

    def side(jobs: list[LocalRanks], images: int) -> _Side:
        found = _Side(Processes(jobs), images, options.steps)
        found.warm_up()
        return found

    lone = [begun(f"lone{i}", work.images, 1, i) for i in range(options.rank_numbers[-1])]
    apart = {count: side(lone[:count], work.images) for count in reversed(counts)}
    sides = {"alone": side(lone[:1], work.images)}
    for count in counts:
        sides[f"apart_{count}"] = apart[count]
        weak = [begun(f"weak{count}", work.images, count)]
        sides[f"weak_{count}"] = side(weak, work.images)
        share = work.images // count
        sides[f"strong_{count}"] = side([begun(f"strong{count}", share, count)], share)
    return sides


def _start(
    work: Workload, ranks: int, folder: Path, kind: Literal["cpu", "cuda"], gpu: int,
    data: str | None,
) -> LocalRanks:  # fmt: skip
    folder.mkdir()
    part = json.dumps(dataclasses.asdict(Part(work, kind, gpu, data)))
    return start("pipeline.benchmark.scale", [part, str(folder)], ranks)


def _add_ratios(result: Result, counts: list[int]) -> None:
    spreads = result.spreads
    alone = spreads["alone_images_per_sec"]
    for count in counts:
        if count == 1:
            continue
        weak, strong, apart = (
            spreads[f"{side}_{count}_images_per_sec"] for side in ("weak", "strong", "apart")
        )
        times_alone = Spread(tuple(count * speed for speed in alone.rounds))
        result.ratios |= {
            f"weak_scaling_{count}": ratio(weak, apart),
            # Less moved by whatever else runs on the machine; a thread that spins counts as work.
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
        low, middle, high = result.spreads[f"{side}_images_per_sec"].quartiles
        step_ms = result.spreads[f"{side}_step_sec"].median * 1e3
        shares = [result.spreads[f"{side}_{share}_share"].median for share in _SHARES]
        table.append((
            side, f"{middle:.4g}", f"{low:.4g} .. {high:.4g}", f"{step_ms:.4g}",
            *(f"{share:.1%}" for share in shares),
        ))  # fmt: skip
    return table


def main(argv: list[str]) -> None:
    """One process: joins the other ranks if there are any, then serves."""
    told = json.loads(argv[0])
    part = Part(**told | {"work": Workload(**told["work"])})
    world = connect()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if part.kind == "cuda":
        device = torch.device("cuda", part.gpu + world.local_rank)
        torch.cuda.set_device(device)
    training = _training(part, world, device, Path(argv[1]))
    serve(lambda steps: _train(training, steps))


def _training(part: Part, world: World, device: torch.device, folder: Path) -> Training:
    config = resident_config(part.work, world.size, folder, threads=1)
    if part.data is None:
        return resident_training(config, world, device, folder)
    return training_from_files(Path(part.data), config, world, device, folder)


def _train(training: Training, steps: int) -> dict[str, float]:
    """Where the time of `steps` steps goes, by the program's own phases.

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
        "wall_sec": wall,
        "cpu_sec": cpu,
        **waits,
        "compute_share": 1 - sum(waits.values()),
        "forward_backward_sec": statistics.fmean(computed),
        "jitter_sec": statistics.pstdev(computed),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
