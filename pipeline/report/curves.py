"""Curves of a run, as arrays against its iterations (optimizer steps)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.runs import Run

POINTS = 250
"""The most points of a curve of training error: more would be a band, not a line."""

NORM_POINTS = 60
"""The same of a gradient norm, which jumps from step to step."""


@dataclass(frozen=True)
class Curve:
    """`steps` (n,) int64, rising, and `values` (n,) float64."""

    steps: np.ndarray
    values: np.ndarray

    def until(self, step: float) -> Curve:
        """The part up to `step`."""
        early = self.steps <= step
        return Curve(self.steps[early], self.values[early])


def training_error(run: Run) -> Curve:
    """Top-1 error in % over the augmented training images since the line before."""
    return _errors(_thinned(_curve(run.events("train"), "top1"), np.mean))


def validation_error(run: Run) -> Curve:
    """Top-1 error in % of each validation."""
    return _errors(_curve(run.events("val"), "top1"))


def gradient_norm(run: Run) -> Curve:
    """The norm over all weights of the gradient that one step took; of neighbouring lines the
    median. Steps that fp16 skipped have none."""
    return _thinned(_curve(run.events("train"), "gradient_norm"), np.median, NORM_POINTS)


def learning_rate(run: Run) -> Curve:
    """The learning rate in force at each line of training."""
    return _curve(run.events("train"), "lr")


def _errors(shares: Curve) -> Curve:
    """Errors in % of shares that were right, 0 to 1."""
    return Curve(shares.steps, 100 * (1 - shares.values))


def _curve(lines: list[dict[str, Any]], name: str) -> Curve:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps = np.array([step for step, _ in points], dtype=np.int64)
    return Curve(steps, np.array([value for _, value in points], dtype=np.float64))


def _thinned(curve: Curve, summary: Callable[[np.ndarray], Any], most: int = POINTS) -> Curve:
    """At most `most` points, each the `summary` of as many neighbours, at the last one's step."""
    size = -(-len(curve.steps) // most)
    if size <= 1:
        return curve
    ends = range(size, len(curve.steps) + size, size)
    parts = [slice(end - size, min(end, len(curve.steps))) for end in ends]
    steps = np.array([curve.steps[part][-1] for part in parts])
    return Curve(steps, np.array([summary(curve.values[part]) for part in parts]))
