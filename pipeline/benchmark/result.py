"""Rounds that alternate, their medians and quartiles, and how a result is written and shown."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.system import machine
from pipeline.system.console import counted
from pipeline.system.files import write_text
from pipeline.system.gpus import listed_gpus

Measure = Callable[[], float | Mapping[str, float]]
"""Measures one round of a side: a number, or several named ones."""

Show = Callable[[str], None]
"""Shows a text in place of the previous one; an empty one makes room for other lines."""

_PACKAGES = ("triton", "pillow", "simplejpeg", "apex")  # besides those of a run


@contextmanager
def status_line() -> Iterator[Show]:
    """Shows what a benchmark is doing: a line at the end of stderr if that is a terminal, removed
    when the body ends, however it does."""
    shown = sys.stderr.isatty()

    def show(text: str) -> None:
        if shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        show("")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `rounds`; for one round all three are that round."""

    rounds: tuple[float, ...]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median, upper quartile, interpolated between rounds."""
        if len(self.rounds) == 1:
            return (self.rounds[0],) * 3
        low, middle, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return low, middle, high

    @property
    def median(self) -> float:
        """The middle one of the rounds, or the mean of the two middle ones."""
        return self.quartiles[1]

    def cells(self, factor: float = 1.0, unit: str = "") -> tuple[str, str]:
        """Cells of a table, times `factor`: the median with its `unit`, and the quartiles."""
        low, middle, high = (number(factor * one) for one in self.quartiles)
        return middle + unit, f"{low} .. {high}"

    def to_json(self) -> dict[str, Any]:
        """Median, quartiles and every round."""
        low, middle, high = self.quartiles
        return {"median": middle, "quartiles": [low, high], "rounds": list(self.rounds)}


def by_round(work: Callable[..., float], *spreads: Spread) -> Spread:
    """`work` applied to each round of `spreads`: neighbours in time belong together."""
    rounds = zip(*(spread.rounds for spread in spreads), strict=True)
    return Spread(tuple(work(*found) for found in rounds))


def ratio(upper: Spread, lower: Spread) -> Spread:
    """Round by round, `upper` over `lower`."""
    return by_round(lambda a, b: a / b, upper, lower)


def interleave(
    rounds: int, sides: Mapping[str, Measure], show: Show = lambda text: None
) -> dict[str, Spread]:
    """Runs the sides in turn, A, B, A, B, ..., so that a slow spell of the machine affects them
    all.

    The first call of each is a warm-up and does not count: imports, kernels, memory, connections.
    `show` gets the name of the next. Returns the rounds of each number, in order.
    """
    measured: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, measure in sides.items():
            side = name.removesuffix("_images_per_sec").replace("_", " ")
            show(f"measuring: {side}, " + (f"round {turn} of {rounds}" if turn else "warm-up"))
            found = measure()
            for key, value in (found if isinstance(found, Mapping) else {name: found}).items():
                measured.setdefault(key, []).append(value)
    return {name: Spread(tuple(values[1:])) for name, values in measured.items()}


@dataclass
class Result:
    """The result of a benchmark.

    `ratios` have targets, `spreads` are what they were made of and what else was measured in
    rounds, `figures` single numbers and `settings` what was run; `table` is for
    people: a row of cells each, the first row the head. Names carry the unit.
    """

    name: str
    settings: dict[str, Any]
    ratios: dict[str, Spread | float] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    table: list[tuple[str, ...]] = field(default_factory=list)

    def ratio_value(self, name: str) -> float:
        """The number of a ratio: the median where it was measured in rounds."""
        found = self.ratios[name]
        return found.median if isinstance(found, Spread) else found

    def to_json(self) -> dict[str, Any]:
        """The whole result."""
        in_rounds = {n: one.to_json() for n, one in self.ratios.items() if isinstance(one, Spread)}
        return {
            "benchmark": self.name,
            "ratios": {name: self.ratio_value(name) for name in self.ratios},
            "ratio_rounds": in_rounds,
            "raw": {name: spread.to_json() for name, spread in self.spreads.items()} | self.figures,
            "settings": self.settings,
        }

    def text(self) -> str:
        """What was measured, in words (the figures `measured` and `images`) and as a table, the
        result's own or else of all spreads; its numbers; what did not run (the figure `not_run`)
        and why; a line for each ratio; the figure `verdict`."""
        table = self.table
        if self.spreads and not table:
            rows = [(name, *spread.cells()) for name, spread in self.spreads.items()]
            table = [("", "median", "quartiles"), *rows]
        numbers = {n: one for n, one in self.figures.items() if isinstance(one, int | float)}
        not_run: Mapping[str, str] = self.figures.get("not_run", {})
        return "\n".join([
            *(self.figures[name] for name in ("measured", "images") if name in self.figures),
            *aligned(table),
            *aligned([(name, number(value)) for name, value in numbers.items()]),
            *(f"{name}: not run: {reason}" for name, reason in not_run.items()),
            *(self._ratio_line(name) for name in self.ratios),
            *([self.figures["verdict"]] if "verdict" in self.figures else []),
        ])  # fmt: skip

    def _ratio_line(self, name: str) -> str:
        line, found = f"{name} = {self.ratio_value(name):.3f}", self.ratios[name]
        if not isinstance(found, Spread):
            return line
        low, _, high = found.quartiles
        rounds = counted(len(found.rounds), "round")
        return f"{line} (quartiles {low:.3f} .. {high:.3f}, {rounds})"


Save = Callable[[Result], None]
"""Receives a result as far as it has got."""


def number(value: float) -> str:
    """A number with four digits, or all of those before the point."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table; the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [f"{row[0]:<{widths[0]}}"]
            + [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as an indented file. OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def of_this_machine(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with what its numbers depend on: the machine, the versions and the time."""
    import torch  # not above, as `gpu_check` says in a sentence that it is not installed

    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": machine.available_cores(),
        "gpu": None,
        "system": platform.system() + " " + platform.release(),
    }
    versions = dict(machine.versions())
    if torch.version.cuda is not None:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions |= {"cuda": torch.version.cuda, "cudnn": str(cudnn)}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        found |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "driver": listed_gpus().driver or "unknown",
        }
    packages = {name: machine.version_of(name) for name in _PACKAGES}
    versions |= {name: version for name, version in packages.items() if version is not None}
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {**content, "machine": found, "versions": versions, "date": date}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
