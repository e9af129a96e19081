"""The report of runs: its plots and tables, in order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.training import Family
from pipeline.report.degradation import degradation_blocks
from pipeline.report.figures import (
    EARLY_SHARE,
    Panel,
    Styles,
    draw_early,
    draw_errors,
    draw_gradient_norms,
    gradient_norm,
    styles_of,
)
from pipeline.report.pages import Block, Heading, Paragraph, Picture, Table, write_pages
from pipeline.report.runs import Run, date
from pipeline.report.tables import comparison_blocks
from pipeline.system.console import counted
from pipeline.system.machine import versions

_LINES = (
    "Thin: top-1 error over the augmented training images since the line of metrics before"
    " (neighbouring lines averaged); bold: validation. Every run is drawn."
)
_ERRORS = f"{_LINES} Below: the learning rate."


def write_report(out: Path, runs: Sequence[Run]) -> None:
    """Writes index.html, report.md and the PNG files they show to the folder `out`, which exists.
    What an earlier report left there is replaced."""
    for old in out.glob("curves-*.png"):
        old.unlink()
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(run.data_label, []).append(run)
    made = (
        f"Made on {time.strftime('%Y-%m-%d %H:%M')} by python -m pipeline.report at commit "
        f"{versions()['commit']} from the files of {counted(len(runs), 'run')}, listed at the end. "
        "Every number of ours was read from them."
    )
    blocks = [
        Heading("Runs compared with the ResNet paper", 1),
        Paragraph(made),
        *degradation_blocks(by_data),
        *_curve_blocks(out, by_data, styles_of({run.network for run in runs})),
        *comparison_blocks(runs),
        Heading("The runs"),
        Table(
            ("run", "network", "data", "seed", "steps", "finished", "last line", "commit",
             "versions", "folder"),
            [_listed(run) for run in runs], (3, 4),
        ),
    ]  # fmt: skip
    write_pages(out, blocks)


def _listed(run: Run) -> tuple[str, ...]:
    found = run.start.get("versions", {})
    others = [f"{name} {version}" for name, version in found.items() if name != "commit"]
    return (
        run.name, run.network.label, run.data_label, str(run.settings["run.seed"]),
        f"{run.step:,}", "yes" if run.finished else "no", date(run.time),
        found.get("commit", "unknown"), ", ".join(others), str(run.folder),
    )  # fmt: skip


def _curve_blocks(out: Path, by_data: dict[str, list[Run]], styles: Styles) -> list[Block]:
    blocks: list[Block] = [Heading("Curves")]
    for number, (data, runs) in enumerate(by_data.items(), 1):
        families: dict[Family, list[Run]] = {}
        for run in runs:
            if run.events("train"):
                families.setdefault(run.network.family, []).append(run)
        for family, members in families.items():
            plots = _Plots(out, f"curves-{number}-{family}", data, members, styles)
            blocks += [Heading(f"On {data}", 3), *plots.blocks()]
    if len(blocks) == 1:
        blocks.append(Paragraph("Not yet run: no run has a line of training metrics."))
    return blocks


@dataclass(frozen=True)
class _Plots:
    """The plots of the runs of one family of networks on one data set."""

    out: Path
    name: str
    """Prefix of the names of their files."""
    data: str
    runs: Sequence[Run]
    styles: Styles

    def blocks(self) -> list[Block]:
        """The plots for which there are enough runs, in order."""
        plain = [run for run in self.runs if not run.network.residual]
        # Bottlenecks have no plain net to compare with.
        residual = [run for run in self.runs if run.network.residual and not run.network.variant]
        panels = every = [Panel("all runs", self.runs, self.styles)]
        blocks: list[Block] = []
        if plain and residual:
            sides = (("plain nets", plain), ("ResNets", residual))
            panels = [Panel(title, runs, self.styles) for title, runs in sides]
            caption = f"Plain against residual nets on {self.data}. {_ERRORS}"
            alt = "error against iterations, plain left, ResNets right"
            blocks.append(self._picture("plain-residual", draw_errors, panels, caption, alt))
        if len(self.runs) > 1 or panels is every:
            caption = f"All runs on {self.data}. {_ERRORS}"
            alt = "error of all runs against iterations"
            blocks.append(self._picture("all", draw_errors, every, caption, alt))
        return [*blocks, *self._early(plain, residual), *self._gradient_norms(panels)]

    def _picture(
        self, kind: str, draw: Callable[[Path, Sequence[Panel]], None], panels: Sequence[Panel],
        caption: str, alt: str,
    ) -> Picture:  # fmt: skip
        file = f"{self.name}-{kind}.png"
        draw(self.out / file, panels)
        return Picture(file, caption, alt)

    def _early(self, plain: list[Run], residual: list[Run]) -> list[Block]:
        by_depth: dict[int, list[Run]] = {}
        for run in (*plain, *residual):
            by_depth.setdefault(run.network.depth, []).append(run)
        panels = [
            Panel(f"{depth} layers", by_depth[depth], self.styles)
            for depth in sorted(
                {r.network.depth for r in plain} & {r.network.depth for r in residual}
            )
        ]
        early = [panel for panel in panels if panel.has_early_curves]
        blocks: list[Block] = []
        if early:
            caption = (
                f"Early convergence on {self.data}: the first {EARLY_SHARE:.0%} of the iterations, "
                f"plain and residual nets of the same depth. {_LINES}"
            )
            alt = "error over the first iterations, one plot for each depth"
            blocks.append(self._picture("early", draw_early, early, caption, alt))
        missing = [panel.title for panel in panels if panel not in early]
        if missing:
            said = (
                f"Early convergence on {self.data} is not drawn for {', '.join(missing)}: a curve "
                f"needs two lines of training metrics in the first {EARLY_SHARE:.0%} of the "
                "iterations; a smaller run.log_every_steps gives more."
            )
            blocks.append(Paragraph(said))
        return blocks

    def _gradient_norms(self, panels: Sequence[Panel]) -> list[Block]:
        norms: dict[str, list[float]] = {}
        for run in (run for panel in panels for run in panel.runs):
            values = gradient_norm(run).values
            norms.setdefault(run.network.label, []).extend(values[values > 0].tolist())
        rows = [
            (label, f"{statistics.median(values):.3g}", f"{min(values):.3g} to {max(values):.3g}")
            for label, values in norms.items()
            if values
        ]
        if not rows:
            return []
        caption = (
            "The gradient's norm over all weights by depth, logarithmic. The paper holds vanishing "
            "gradients unlikely as the cause of degradation: its plain nets' gradients stayed "
            "healthy."
        )
        alt = "norm of the gradient against iterations, by depth"
        picture = self._picture("gradient-norm", draw_gradient_norms, panels, caption, alt)
        return [picture, Table(("network", "median norm", "range"), rows, (1, 2))]
