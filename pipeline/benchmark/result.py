"""Rounds that alternate, their medians and quartiles, and how a result is written and shown."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.system.console import counted
from pipeline.system.files import write_text

Show = Callable[[str], None]
"""Shows a text in the place of the one before; an empty one makes room for lines of others."""


@contextmanager
def status_line() -> Iterator[Show]:
    """What a benchmark is at: a line at the end of stderr if that is a terminal, which is gone when
    the body ends, however it does."""
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
    """Median and quartiles of `rounds`; of one round all three are that round."""

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

    def to_json(self) -> dict[str, Any]:
        """Median, quartiles and every round."""
        low, middle, high = self.quartiles
        return {"median": middle, "quartiles": [low, high], "rounds": list(self.rounds)}


def interleave(
    rounds: int, sides: Mapping[str, Callable[[], float]], show: Show | None = None
) -> dict[str, Spread]:
    """Runs the sides in turn, A, B, A, B, ..., so that a slow spell of the machine meets them all.

    Each call of a side measures one round of it; `show` gets to know which is next. Returns each
    side's rounds, in order.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in sides.items():
            if show is not None:
                side = name.removesuffix("_images_per_sec").replace("_", " ")
                show(f"measuring: {side}, round {number + 1} of {rounds}")
            measured[name].append(measure())
    return {name: Spread(tuple(values)) for name, values in measured.items()}


def ratio(upper: Spread, lower: Spread) -> Spread:
    """Round by round, `upper` over `lower`: neighbours in time are compared with each other."""
    pairs = zip(upper.rounds, lower.rounds, strict=True)
    return Spread(tuple(a / b for a, b in pairs))


@dataclass
class Result:
    """What a benchmark found.

    `ratios` are what an aim is set for, `spreads` what they were made of and what else was
    measured in rounds, `figures` single numbers and `settings` what was run; `table` is for
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

    def to_json(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """The whole result with the machine, the versions and the time."""
        return {
            "benchmark": self.name,
            "ratios": {name: self.ratio_value(name) for name in self.ratios},
            "ratio_rounds": {
                name: found.to_json()
                for name, found in self.ratios.items()
                if isinstance(found, Spread)
            },
            "raw": {name: spread.to_json() for name, spread in self.spreads.items()} | self.figures,
            "settings": self.settings,
            "machine": machine(),
            "versions": dict(versions),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def text(self) -> str:
        """What was measured, in words (the figures `measured` and `images`) and as a table, the
        result's own or else of all spreads; its numbers; what did not run (the figure `not_run`)
        and why; a line for each ratio; the figure `verdict`."""
        rows: list[tuple[str, ...]] = [("", "median", "quartiles")]
        for name, spread in self.spreads.items():
            low, middle, high = spread.quartiles
            rows.append((name, f"{middle:.4g}", f"{low:.4g} .. {high:.4g}"))
        numbers: list[tuple[str, ...]]
        numbers = [(name, f"{value:.4g}", "") for name, value in _numbers(self.figures)]
        if self.table:
            lines = aligned(self.table) + aligned(numbers)
        else:
            lines = aligned(rows + numbers) if len(rows + numbers) > 1 else []
        lines = self._words("measured") + self._words("images") + lines
        not_run: Mapping[str, str] = self.figures.get("not_run", {})
        lines += [f"{name}: not run: {reason}" for name, reason in not_run.items()]
        for name, found in self.ratios.items():
            line = f"{name} = {self.ratio_value(name):.3f}"
            if isinstance(found, Spread):
                low, _, high = found.quartiles
                line += (
                    f" (quartiles {low:.3f} .. {high:.3f}, {counted(len(found.rounds), 'round')})"
                )
            lines.append(line)
        return "\n".join(lines + self._words("verdict"))

    def _words(self, name: str) -> list[str]:
        return [self.figures[name]] if name in self.figures else []


Save = Callable[[Result], None]
"""Gets a result as far as it has come."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as an indented file. OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, and the GPU if there is one, with its driver."""
    import torch

    from pipeline.benchmark.device import driver

    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": None,
        "system": platform.system() + " " + platform.release(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        found |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "driver": driver(),
        }
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _numbers(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in figures.items() if isinstance(value, int | float)]


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [f"{row[0]:<{widths[0]}}"]
            + [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]
