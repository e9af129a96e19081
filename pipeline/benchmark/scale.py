"""`benchmark scale`: Horovod ranks against processes that do not communicate, and one alone.

Weak scaling: every rank has as many images as one alone. Strong: all together have. `crew.py` says
how the sides take turns.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from pipeline.benchmark.crew import Crew, pick_kind, start
from pipeline.benchmark.rank_options import ScaleOptions
from pipeline.benchmark.resident import Workload
from pipeline.benchmark.result import Result, Spread, interleave, ratio
from pipeline.ranks.local import LocalRanks

_WARM_UP_STEPS = 4
_SHARES = ("data_wait", "agreement", "compute", "exposed_communication")
_MEASURED = ("cpu_sec_per_step", "step_sec", "forward_backward_sec", "jitter_sec")


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

    def __init__(self, crew: Crew, images: int, steps: int) -> None:
        self._crew, self._images, self._steps = crew, images, steps
        self._rounds: list[dict[str, float]] = []

    def warm_up(self) -> None:
        """Memory, algorithms and connections the first time."""
        self._crew.ask(steps=_WARM_UP_STEPS)

    def measure(self) -> float:
        """Images per second of all together over a round, each by its own clock."""
        answers = self._crew.ask(steps=self._steps)
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
        stack.callback(Crew([job]).end)
        return job

    def side(jobs: list[LocalRanks], images: int) -> _Side:
        found = _Side(Crew(jobs), images, options.steps)
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
    part = {"work": dataclasses.asdict(work), "kind": kind, "gpu": gpu, "data": data}
    return start("pipeline.benchmark.scale_rank", [json.dumps(part), str(folder)], ranks)


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
