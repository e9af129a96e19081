"""Rounds that alternate, their medians and quartiles, and how a result is written and shown."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def interleave(rounds: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, Spread]:
    """Runs the sides in turn, A, B, A, B, ..., so that a slow spell of the machine meets them all.

    Each call of a side measures one round of it. Returns each side's rounds, in order.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
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
        """A table of what was measured and a line for each ratio."""
        rows = [("", "median", "quartiles")]
        for name, spread in self.spreads.items():
            low, middle, high = spread.quartiles
            rows.append((name, f"{middle:.4g}", f"{low:.4g} .. {high:.4g}"))
        rows += [(name, f"{value:.4g}", "") for name, value in _numbers(self.figures)]
        lines = _aligned(rows) if len(rows) > 1 else []
        for name, found in self.ratios.items():
            line = f"{name} = {self.ratio_value(name):.3f}"
            if isinstance(found, Spread):
                low, _, high = found.quartiles
                line += f" (quartiles {low:.3f} .. {high:.3f}, {len(found.rounds)} rounds)"
            lines.append(line)
        return "\n".join(lines)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as an indented file. OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, and the GPU if there is one."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system() + " " + platform.release(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _numbers(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in figures.items() if isinstance(value, int | float)]


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {spread:>{widths[2]}}".rstrip()
        for name, value, spread in rows
    ]
