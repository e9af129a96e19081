"""The report of runs: its plots and tables, in order."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.training import Family
from pipeline.model.network import Network
from pipeline.report.degradation import degradation_blocks
from pipeline.report.figures import (
    EARLY_SHARE,
    Panel,
    draw_early,
    draw_errors,
    draw_gradient_norms,
    gradient_norm,
)
from pipeline.report.pages import Block, Heading, Paragraph, Picture, Table, write_pages
from pipeline.report.runs import Run
from pipeline.report.styles import Series, series_of
from pipeline.report.summary import origin_blocks, summary_blocks
from pipeline.report.tables import comparison_blocks
from pipeline.system.console import counted
from pipeline.system.machine import versions

_NAMED = 3
"""The most runs that the title names."""

_NETWORKS_OF: Mapping[Family, str] = {
    "cifar": "networks for CIFAR-10", "imagenet": "networks for ImageNet",
}  # fmt: skip

_THIN = (
    "Thin: top-1 error over the augmented training images since the line of metrics before"
    " (neighbouring lines averaged)"
)
_BELOW = "Below: the learning rate."


def write_report(out: Path, runs: Sequence[Run]) -> None:
    """Writes index.html, report.md and the PNG files they show to the folder `out`, which exists.
    What an earlier report left there is replaced. A section without anything in it is left out."""
    for old in out.glob("curves-*.png"):
        old.unlink()
    by_data = _by_data(runs)
    made = (
        f"Made on {time.strftime('%Y-%m-%d %H:%M')} by python -m pipeline.report at commit "
        f"{versions()['commit']} from the files of {counted(len(runs), 'run')}, listed at the end. "
        "Every number about a run was read from them."
    )
    blocks = [
        Heading(_title(runs), 1),
        Paragraph(made),
        *summary_blocks(by_data),
        *degradation_blocks(by_data),
        *_curve_blocks(out, by_data, {run.network for run in runs}),
        *comparison_blocks(runs),
        *origin_blocks(runs),
    ]
    write_pages(out, blocks)


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(run.name for run in runs))
    if len(names) > _NAMED:
        return f"{len(runs)} runs"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _by_data(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each data set by its name; its path where two have one name."""
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.data_label, []).append(run)
    names = Counter(members[0].data_name for members in by_label.values())
    return {
        label if names[members[0].data_name] > 1 else members[0].data_name: members
        for label, members in by_label.items()
    }


def _curve_blocks(
    out: Path, by_data: Mapping[str, Sequence[Run]], networks: Set[Network]
) -> list[Block]:
    """The plots of each data set, those of CIFAR's networks apart: their iterations are others."""
    found: list[tuple[str, list[Block]]] = []
    for number, (data, runs) in enumerate(by_data.items(), 1):
        families: dict[Family, list[Run]] = {}
        for run in runs:
            if run.events("train"):
                families.setdefault(run.network.family, []).append(run)
        for family, members in families.items():
            series = series_of(members, networks)
            plots = _Plots(out, f"curves-{number}-{family}", members, series)
            title = data if len(families) == 1 else f"{data}, {_NETWORKS_OF[family]}"
            found.append((title, plots.blocks()))
    if not found:
        return []
    blocks: list[Block] = [Heading("Curves")]
    for title, plotted in found:
        blocks += [Heading(title, 3)] if len(found) > 1 else []
        blocks += plotted
    return blocks


@dataclass(frozen=True)
class _Plots:
    """The plots of the runs of one family of networks on one data set."""

    out: Path
    name: str
    """Prefix of the names of their files."""
    runs: Sequence[Run]
    series: Sequence[Series]

    def blocks(self) -> list[Block]:
        """The plots for which there are enough runs, in order."""
        plain = [run for run in self.runs if not run.network.residual]
        # Bottlenecks have no plain net to compare with.
        residual = [run for run in self.runs if run.network.residual and not run.network.variant]
        panels = every = [Panel(self._title, self.runs, self.series)]
        blocks: list[Block] = []
        if plain and residual:
            sides = (("plain nets", plain), ("ResNets", residual))
            panels = [Panel(title, runs, self.series) for title, runs in sides]
            caption = f"Plain against residual nets. {self._lines} {_BELOW}"
            alt = "error against iterations, plain left, ResNets right"
            blocks.append(self._picture("plain-residual", draw_errors, panels, caption, alt))
        if len(self.runs) > 1 or panels is every:
            caption = f"{self._lines} {_BELOW}"
            alt = "error of all runs against iterations"
            blocks.append(self._picture("all", draw_errors, every, caption, alt))
        return [*blocks, *self._early(plain, residual), *self._gradient_norms(panels)]

    @property
    def _lines(self) -> str:
        """What the curves of error are."""
        validated = any(run.events("val") for run in self.runs)
        return _THIN + ("; bold: validation." if validated else ". None has validated.")

    @property
    def _title(self) -> str:
        networks = {run.network.label for run in self.runs}
        return networks.pop() if len(networks) == 1 else "all runs"

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
            Panel(f"{depth} layers", by_depth[depth], self.series)
            for depth in sorted(
                {r.network.depth for r in plain} & {r.network.depth for r in residual}
            )
        ]
        early = [panel for panel in panels if panel.has_early_curves]
        blocks: list[Block] = []
        if early:
            caption = (
                f"Early convergence: the first {EARLY_SHARE:.0%} of the iterations, "
                f"plain and residual nets of the same depth. {self._lines}"
            )
            alt = "error over the first iterations, one plot for each depth"
            blocks.append(self._picture("early", draw_early, early, caption, alt))
        missing = [panel.title for panel in panels if panel not in early]
        if missing:
            said = (
                f"Early convergence is not drawn for {', '.join(missing)}: a curve "
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
        if not any(norms.values()):
            return []
        caption = "The gradient's norm over all weights, logarithmic."
        alt = "norm of the gradient against iterations"
        if all(run.network.residual for run in self.runs):
            return [self._picture("gradient-norm", draw_gradient_norms, panels, caption, alt)]
        caption += (
            " The paper holds vanishing gradients unlikely as the cause of degradation: its plain "
            "nets' gradients stayed healthy."
        )
        rows = [
            (label, f"{statistics.median(values):.3g}", f"{min(values):.3g} to {max(values):.3g}")
            for label, values in norms.items()
            if values
        ]
        picture = self._picture("gradient-norm", draw_gradient_norms, panels, caption, alt)
        return [picture, Table(("network", "median norm", "range"), rows, (1, 2))]
