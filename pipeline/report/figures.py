"""The curves of runs and the PNG plots of a report: the only file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pipeline.report.runs import Run
from pipeline.report.styles import Series, Style
from pipeline.system.files import replacing
from pipeline.system.words import printable

_LOOK: Any = {
    "font.size": 10, "font.family": "sans-serif", "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.fontsize": 9, "legend.frameon": True, "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
}  # fmt: skip
_THIN = {"linewidth": 0.9, "alpha": 0.75}
_BOLD = {"linewidth": 2.3, "alpha": 1.0, "solid_capstyle": "round"}
_INSIDE_LETTERS, _INSIDE_LINES = 28, 7
"""The longest label and the most lines of a legend inside a plot."""

_LETTERS_PER_INCH = 14
"""About how many letters of a legend an inch has."""

_SETTLED_SHARE = 0.02
"""Share of the iterations that does not set the top of the axis: every net begins near chance."""

EARLY_SHARE = 0.2
"""Share of the iterations over which early convergence is shown."""

POINTS = 250
"""The most points of a curve of training error: more would be a band, not a line."""

NORM_POINTS = 60
"""The most points of a gradient norm, which jumps from step to step."""


@dataclass(frozen=True)
class Curve:
    """A curve against iterations (optimizer steps): `steps` (n,) int64, rising, and `values` (n,)
    float64."""

    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]], name: str) -> Curve:
        """The curve of `name` over the lines of metrics that have it."""
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        steps = np.array([step for step, _ in points], dtype=np.int64)
        return cls(steps, np.array([value for _, value in points], dtype=np.float64))

    def until(self, step: float) -> Curve:
        """The part up to `step`."""
        early = self.steps <= step
        return Curve(self.steps[early], self.values[early])

    def thinned(self, summary: Callable[[np.ndarray], Any], most: int) -> Curve:
        """A curve of at most `most` points, each the `summary` of equally many neighbours, at the
        last's step."""
        size = -(-len(self.steps) // most)
        if size <= 1:
            return self
        begins = range(0, len(self.steps), size)
        steps = np.array([self.steps[begin : begin + size][-1] for begin in begins])
        return Curve(steps, np.array([summary(self.values[b : b + size]) for b in begins]))


def training_error(run: Run) -> Curve:
    """Top-1 error in % over the augmented training images since the line before."""
    right = Curve.of(run.events("train"), "top1").thinned(np.mean, POINTS)
    return Curve(right.steps, 100 * (1 - right.values))


def validation_error(run: Run) -> Curve:
    """Top-1 error in % of each validation."""
    right = Curve.of(run.events("val"), "top1")
    return Curve(right.steps, 100 * (1 - right.values))


def gradient_norm(run: Run) -> Curve:
    """The gradient norm of a step over all weights, the median of neighbouring lines. Steps that
    fp16 skipped have none."""
    return Curve.of(run.events("train"), "gradient_norm").thinned(np.median, NORM_POINTS)


def learning_rate(run: Run) -> Curve:
    """The learning rate in force at each line of training."""
    return Curve.of(run.events("train"), "lr")


@dataclass(frozen=True)
class Panel:
    """One plot of several side by side, of the `runs` that it shows of all `series`."""

    title: str
    runs: Sequence[Run]
    series: Sequence[Series]

    @cached_property
    def shown(self) -> list[Series]:
        """The series that have runs here, with these runs alone: without dashes where their colours
        tell them apart."""
        mine = {run.folder for run in self.runs}
        found = []
        for series in self.series:
            if runs := tuple(run for run in series.runs if run.folder in mine):
                found.append(replace(series, runs=runs))
        if len({series.style.colour for series in found}) < len(found):
            return found
        return [replace(series, style=Style(series.style.colour, "-")) for series in found]

    @property
    def lines(self) -> list[tuple[Run, Style]]:
        """Every run with its style."""
        return [(run, series.style) for series in self.shown for run in series.runs]

    @property
    def early(self) -> float:
        """The iteration with which the first `EARLY_SHARE` of its longest run ends."""
        return EARLY_SHARE * max(run.step for run in self.runs)

    @property
    def has_early_curves(self) -> bool:
        """Whether any run has more than a point in the early part."""
        return any(len(training_error(run).until(self.early).steps) > 1 for run in self.runs)


def draw_errors(path: Path, panels: Sequence[Panel]) -> None:
    """Training error thin, validation error bold, and the learning rate below, against iterations.

    The panels share their axis of errors, as in the paper's figures 1, 4 and 6.
    """
    with matplotlib.rc_context(_LOOK):
        figure = _figure(len(panels), 5.4)
        axes = figure.subplots(
            2, len(panels), sharex="col", sharey="row", squeeze=False, height_ratios=[5, 1]
        )
        for i, panel in enumerate(panels):
            upper, lower = axes[0, i], axes[1, i]
            _errors(upper, panel)
            _learning_rates(lower, panel)
            _iterations(lower)
            if i == 0:
                upper.set_ylabel("top-1 error (%)")
                lower.set_ylabel("learning rate")
        _legends(figure, axes[0], panels)
        _limit(axes[0, 0], [run for panel in panels for run in panel.runs])
        _save(figure, path)


def draw_early(path: Path, panels: Sequence[Panel]) -> None:
    """As `draw_errors`, only the early part of each panel, no learning rate, and at most two plots
    side by side."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(_LOOK):
        figure = _figure(columns, 4.0 * rows)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for empty in axes[len(panels) :]:
            empty.set_axis_off()
        for i, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
            _errors(axis, panel, panel.early)
            _iterations(axis)
            if i % 2 == 0:
                axis.set_ylabel("top-1 error (%)")
        _legends(figure, axes, panels)
        _save(figure, path)


def draw_gradient_norms(path: Path, panels: Sequence[Panel]) -> None:
    """The gradient's norm against iterations, on logarithmic axes that the panels share."""
    with matplotlib.rc_context(_LOOK):
        figure = _figure(len(panels), 4.2)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for i, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
            for run, style in panel.lines:
                _line(axis, gradient_norm(run), style, linewidth=1.4)
            axis.set_title(panel.title, loc="left")
            _log_axis(axis)
            _iterations(axis)
            if i == 0:
                axis.set_ylabel("norm of the gradient (all weights)")
        _legends(figure, axes, panels)
        _save(figure, path)


def _figure(columns: int, height: float) -> Figure:
    return Figure(figsize=(5.2 * max(columns, 1.45), height), layout="constrained")


def _learning_rates(axis: Axes, panel: Panel) -> None:
    """One grey line where all runs of the panel have the same, else one for each run."""
    rates = [(style, learning_rate(run)) for run, style in panel.lines]
    alike = len({(r.steps.tobytes(), r.values.tobytes()) for _, r in rates}) == 1
    for style, rate in rates[:1] if alike else rates:
        look = Style("#555555", "-") if alike else style
        _line(axis, rate, look, drawstyle="steps-pre", linewidth=1.3)
    _log_axis(axis)


def _errors(axis: Axes, panel: Panel, until: float = np.inf) -> None:
    for run, style in panel.lines:
        _line(axis, training_error(run).until(until), style, **_THIN)
        validation = validation_error(run).until(until)
        few = {"marker": "o", "markersize": 4} if len(validation.steps) <= 3 else {}
        _line(axis, validation, style, **_BOLD, **few)
    axis.set_title(panel.title, loc="left")


def _line(axis: Axes, curve: Curve, style: Style, **look: Any) -> None:
    axis.plot(curve.steps, curve.values, color=style.colour, linestyle=style.dash, **look)


def _legends(figure: Figure, axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """What each line is: inside the plots, or below all of them where that would hide curves."""
    # Each once, though it is in several panels; two of one label are two lines.
    shown = list({(s.label, s.style): s for panel in panels for s in panel.shown}.values())
    if len(shown) == len(panels) == 1:
        return  # the title says what it is
    longest = max(len(series.label) for series in shown)
    if longest > _INSIDE_LETTERS or len(shown) > _INSIDE_LINES:
        columns = max(1, int(figure.get_figwidth() * _LETTERS_PER_INCH // (longest + 6)))
        handles = list(map(_handle, shown))
        figure.legend(handles=handles, loc="outside lower left", handlelength=2.6, ncols=columns)
        # As high as before without the lines of the legend.
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        return
    for axis, panel in zip(axes, panels, strict=False):
        handles = list(map(_handle, panel.shown))
        axis.legend(handles=handles, loc="upper right", handlelength=2.6)


def _handle(series: Series) -> Line2D:
    look, label = series.style, printable(series.label).replace("$", r"\$")  # no formula
    return Line2D([], [], color=look.colour, linestyle=look.dash, linewidth=2.3, label=label)


def _limit(axis: Axes, runs: Sequence[Run]) -> None:
    """The axis of errors ends where the curves are once they have left chance behind."""
    settled = [
        curve.values[curve.steps > _SETTLED_SHARE * run.step]
        for run in runs
        for curve in (training_error(run), validation_error(run))
    ]
    values = np.concatenate(settled) if settled else np.empty(0)
    if len(values):
        low, high = float(values.min()), float(np.percentile(values, 99.5))
        margin = max(0.06 * (high - low), 0.5)
        axis.set_ylim(max(0.0, low - margin), min(100.0, high + margin))


def _log_axis(axis: Axes) -> None:
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    # Within two decades powers of ten alone would label one line or none.
    subs = (1.0, 2.0, 5.0) if high / low < 60 else (1.0,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _iterations(axis: Axes) -> None:
    axis.set_xlabel("iterations (optimizer steps)")
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as new:
        figure.savefig(new, dpi=150, metadata={"Software": None})
