"""A report of runs: which plots and tables it has, in which order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.training import Family
from pipeline.report import curves, figures
from pipeline.report.degradation import degradation_blocks
from pipeline.report.figures import Panel, Styles
from pipeline.report.pages import Block, Heading, Paragraph, Picture, Table, write_pages
from pipeline.report.runs import Run, date
from pipeline.report.tables import comparison_blocks
from pipeline.system.console import counted
from pipeline.system.machine import versions

EARLY_SHARE = 0.2
"""Early convergence is shown over the first fifth of the iterations."""

_LINES = (
    "Thin: top-1 error over the augmented training images since the line of metrics before"
    " (neighbouring lines averaged); bold: validation. Every run is drawn."
)


def write_report(out: Path, runs: Sequence[Run]) -> None:
    """Writes index.html, report.md and the PNG files they show to the folder `out`, which exists.
    What an earlier report left there is replaced."""
    for old in out.glob("curves-*.png"):
        old.unlink()
    drawn = figures.styles_of({run.network for run in runs})
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(run.data_label, []).append(run)
    blocks = [*_head(runs), *degradation_blocks(by_data), *_curve_blocks(out, by_data, drawn)]
    write_pages(out, [*blocks, *comparison_blocks(runs), *_list_of_runs(runs)])


def _head(runs: Sequence[Run]) -> list[Block]:
    return [
        Heading("Runs beside the ResNet paper", 1),
        Paragraph(
            f"Made on {time.strftime('%Y-%m-%d %H:%M')} by python -m pipeline.report at commit "
            f"{versions()['commit']} from the files of {counted(len(runs), 'run')}, listed at the "
            "end. Every number of ours was read from them."
        ),
    ]


def _list_of_runs(runs: Sequence[Run]) -> list[Block]:
    rows = []
    for run in runs:
        found = run.versions
        others = [f"{name} {version}" for name, version in found.items() if name != "commit"]
        rows.append(
            (
                run.name, run.network.label, run.data_label, str(run.settings["run.seed"]),
                f"{run.step:,}", "yes" if run.finished else "no", date(run.time),
                found.get("commit", "unknown"), ", ".join(others), str(run.folder),
            )
        )  # fmt: skip
    head = ("run", "network", "data", "seed", "steps", "finished", "last line", "commit",
            "versions", "folder")  # fmt: skip
    return [Heading("The runs"), Table(head, rows, (3, 4))]


def _curve_blocks(out: Path, by_data: dict[str, list[Run]], drawn: Styles) -> list[Block]:
    blocks: list[Block] = [Heading("Curves")]
    for number, (data, runs) in enumerate(by_data.items(), 1):
        with_lines = [run for run in runs if run.events("train")]
        families: dict[Family, list[Run]] = {}
        for run in with_lines:
            families.setdefault(run.network.family, []).append(run)
        for family, members in families.items():
            blocks.append(Heading(f"On {data}", 3))
            blocks += _family_blocks(out, f"{number}-{family}", data, members, drawn)
    if len(blocks) == 1:
        blocks.append(Paragraph("Not yet run: no run has a line of training metrics."))
    return blocks


def _family_blocks(
    out: Path, suffix: str, data: str, runs: Sequence[Run], drawn: Styles
) -> list[Block]:
    """The plots of the runs of one family of networks on one data set."""
    plain = [run for run in runs if not run.network.residual]
    # Bottlenecks have no plain net to stand against.
    residual = [run for run in runs if run.network.residual and not run.network.variant]
    blocks: list[Block] = []
    sides = [Panel("plain nets", plain), Panel("ResNets", residual)]
    if plain and residual:
        name = f"curves-{suffix}-plain-residual.png"
        figures.draw_errors(out / name, sides, drawn)
        caption = f"Plain against residual nets on {data}. {_LINES} Below: the learning rate."
        blocks.append(Picture(name, caption, "error against iterations, plain left, ResNets right"))
    else:
        sides = [Panel("all runs", runs)]
    if len(runs) > 1 or not (plain and residual):
        name = f"curves-{suffix}-all.png"
        figures.draw_errors(out / name, [Panel("all runs", runs)], drawn)
        caption = f"All runs on {data}. {_LINES} Below: the learning rate."
        blocks.append(Picture(name, caption, "error of all runs against iterations"))
    blocks += _early(out, suffix, data, plain, residual, drawn)
    blocks += _gradient_norms(out, suffix, sides, drawn)
    return blocks


def _early(
    out: Path, suffix: str, data: str, plain: list[Run], residual: list[Run], drawn: Styles
) -> list[Block]:
    depths = sorted({r.network.depth for r in plain} & {r.network.depth for r in residual})
    panels = [
        Panel(f"{depth} layers", [r for r in (*plain, *residual) if r.network.depth == depth])
        for depth in depths
    ]
    early = [panel for panel in panels if _has_early_curves(panel)]
    blocks: list[Block] = []
    if early:
        name = f"curves-{suffix}-early.png"
        figures.draw_early(out / name, early, drawn, EARLY_SHARE)
        caption = (
            f"Early convergence on {data}: the first {EARLY_SHARE:.0%} of the iterations, plain "
            f"and residual nets of the same depth. {_LINES}"
        )
        alt = "error over the first iterations, one plot for each depth"
        blocks.append(Picture(name, caption, alt))
    if len(early) < len(panels):
        missing = ", ".join(panel.title for panel in panels if panel not in early)
        blocks.append(
            Paragraph(
                f"Early convergence on {data} is not drawn for {missing}: a curve needs two lines "
                f"of training metrics in the first {EARLY_SHARE:.0%} of the iterations, and no run "
                "has them; a smaller run.log_every_steps gives more."
            )
        )
    return blocks


def _has_early_curves(panel: Panel) -> bool:
    """Whether any run of a panel has more than a point in the early part."""
    until = EARLY_SHARE * max(run.step for run in panel.runs)
    return any(len(curves.training_error(run).until(until).steps) > 1 for run in panel.runs)


def _gradient_norms(out: Path, suffix: str, panels: Sequence[Panel], drawn: Styles) -> list[Block]:
    norms: dict[str, list[float]] = {}
    for panel in panels:
        for run in panel.runs:
            curve = curves.gradient_norm(run)
            values = curve.values[curve.values > 0]
            norms.setdefault(run.network.label, []).extend(values.tolist())
    rows = [
        (label, f"{statistics.median(values):.3g}", f"{min(values):.3g} to {max(values):.3g}")
        for label, values in norms.items()
        if values
    ]
    if not rows:
        return []
    name = f"curves-{suffix}-gradient-norm.png"
    figures.draw_gradient_norms(out / name, panels, drawn)
    caption = (
        "The gradient's norm over all weights by depth, logarithmic. The paper holds vanishing "
        "gradients unlikely as the cause of degradation: its plain nets' gradients stayed healthy."
    )
    return [
        Picture(name, caption, "norm of the gradient against iterations, by depth"),
        Table(("network", "median norm", "range"), rows, (1, 2)),
    ]
