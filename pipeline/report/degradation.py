"""What the runs say about the paper's question: does a deeper net train worse?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import settings
from pipeline.model.network import Network
from pipeline.report.pages import Block, Heading, Paragraph, Table
from pipeline.report.runs import Run

LAST_SHARE = 0.05
"""The final training error is that of the images of the last 5% of a run's iterations."""


@dataclass(frozen=True)
class FinalError:
    """A training error in % and the number of images it was counted over."""

    error: float
    images: int

    @property
    def uncertainty(self) -> float:
        """Two standard deviations of counting so many images, in percentage points."""
        share = self.error / 100
        return float(200 * (share * (1 - share) / self.images) ** 0.5)


def final_training_error(run: Run) -> FinalError | None:
    """The error over the training images of the last iterations, None without a line.

    Each line of metrics counts by the images since the line before.
    """
    lines = run.events("train")
    if not lines:
        return None
    begin = lines[-1]["step"] * (1 - LAST_SHARE)
    before = [0, *(line["position"] for line in lines[:-1])]
    last = [
        (line["position"] - start, line["top1"])
        for start, line in zip(before, lines, strict=True)
        if line["step"] > begin
    ]
    images = sum(count for count, _ in last)
    right = sum(count * top1 for count, top1 in last)
    return FinalError(100 * (1 - right / images), images)


def final_validation_error(run: Run) -> float | None:
    """The error in % of the last validation in training, None without one."""
    lines = run.events("val")
    return 100 * (1 - float(lines[-1]["top1"])) if lines else None


@dataclass(frozen=True)
class Outcome:
    """The final errors in % of one network's finished runs on one data set."""

    network: Network
    runs: tuple[Run, ...]
    training: tuple[FinalError, ...]
    validation: tuple[float, ...]

    @property
    def errors(self) -> list[float]:
        """The training errors in %."""
        return [final.error for final in self.training]

    @property
    def mean(self) -> float:
        """Of the training errors."""
        return statistics.fmean(self.errors)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the training error lies: the range over runs; of one run what counting allows."""
        around = self.training[0].uncertainty if len(self.training) == 1 else 0.0
        return min(self.errors) - around, max(self.errors) + around

    @property
    def text(self) -> str:
        """The training error and where it lies."""
        low, high = self.interval
        return f"{self.mean:.2f} ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Change:
    """What depth did to one kind of net."""

    shallow: Outcome
    deep: Outcome

    @property
    def points(self) -> float:
        """Percentage points by which the deeper net's mean training error is higher."""
        return self.deep.mean - self.shallow.mean

    @property
    def overlaps(self) -> bool:
        """Whether the two intervals have a value in common: a difference may then be chance."""
        (low, high), (other_low, other_high) = self.shallow.interval, self.deep.interval
        return low <= other_high and other_low <= high

    @property
    def worse(self) -> bool:
        """Whether the deeper net trains worse by more than chance: its interval lies above."""
        return self.points > 0 and not self.overlaps

    @property
    def row(self) -> tuple[str, ...]:
        """Of the table of changes."""
        trains = "worse" if self.points > 0 else "better"
        return (
            self.shallow.network.label,
            self.shallow.text,
            self.deep.network.label,
            self.deep.text,
            f"{self.points:+.2f}",
            "no difference shown" if self.overlaps else trains,
        )


_HEAD = ("shallower", "training error, %", "deeper", "training error, %", "points", "it trains")


def verdict(plain: Change, residual: Change) -> str:
    """Whether the paper's effect was seen."""
    if not plain.worse:
        return "the degradation was not seen"
    if residual.worse:
        return "the degradation was seen only in part, as the deeper residual net trains worse too"
    return "the degradation was seen"


def outcomes(runs: Sequence[Run]) -> list[Outcome]:
    """One for each network among the finished `runs`, which are on the same data."""
    found: dict[Network, list[tuple[Run, FinalError]]] = {}
    for run in runs:
        error = final_training_error(run)
        if run.finished and error is not None:
            found.setdefault(run.network, []).append((run, error))
    return [
        Outcome(
            network,
            tuple(run for run, _ in members),
            tuple(error for _, error in members),
            tuple(e for run, _ in members if (e := final_validation_error(run)) is not None),
        )
        for network, members in sorted(found.items())
    ]


def changes(found: Sequence[Outcome]) -> list[tuple[Change, Change]]:
    """(plain, residual) for each pair of depths that both kinds have: every deeper one against the
    shallowest."""
    plain = {(o.network.family, o.network.depth): o for o in found if not o.network.residual}
    kinds: dict[object, dict[int, Outcome]] = {}
    for outcome in found:
        network = outcome.network
        if network.residual and (network.family, network.depth) in plain:
            kinds.setdefault(network.kind, {})[network.depth] = outcome
    pairs = []
    for kind in kinds.values():
        shallow, *deeper = sorted(kind)
        family = kind[shallow].network.family
        for deep in deeper:
            pairs.append(
                (
                    Change(plain[family, shallow], plain[family, deep]),
                    Change(kind[shallow], kind[deep]),
                )
            )
    return pairs


def degradation_blocks(by_data: dict[str, list[Run]]) -> list[Block]:
    """The section: for the runs on each data set the pairs of depths, and the numbers."""
    blocks: list[Block] = [
        Heading("Degradation"),
        Paragraph(
            "The paper's question: does a deeper plain net train worse than a shallower one, where "
            "a residual net does not? Training error here is over the augmented images of the last "
            f"{LAST_SHARE:.0%} of a run's iterations, top-1, while the weights still moved; only "
            "finished runs count. In brackets the range over runs, or of a single run two standard "
            "deviations of counting so many images; where two ranges overlap no difference is "
            "shown."
        ),
    ]
    seen = False
    for data, runs in by_data.items():
        found = outcomes(runs)
        pairs = changes(found)
        if not pairs:
            continue
        seen = True
        blocks.append(Heading(f"On {data}", 3))
        for plain, residual in pairs:
            depths = f"{residual.shallow.network.depth} and {residual.deep.network.depth} layers"
            compared = [o for c in (plain, residual) for o in (c.shallow, c.deep)]
            sentences = [f"{depths}: {verdict(plain, residual)}.", *_unequal(compared)]
            blocks.append(Paragraph(" ".join(sentences)))
            blocks.append(Table(_HEAD, [plain.row, residual.row], (1, 3, 4)))
        blocks.append(_numbers(found))
        unfinished = [run.name for run in runs if not run.finished]
        if unfinished:
            blocks.append(Paragraph(f"Left out as unfinished: {', '.join(unfinished)}."))
    if not seen:
        blocks.append(
            Paragraph(
                "Not yet run: this needs finished runs of a plain and of a residual net, each in "
                "the same two depths, on the same data."
            )
        )
    return blocks


def _unequal(compared: Sequence[Outcome]) -> list[str]:
    """A sentence that names the settings, beside the network's, which the runs do not share."""
    runs = [run for outcome in compared for run in outcome.runs]
    network = {name for name, said in settings().items() if said.of_network}
    names = sorted({name for run in runs for name in run.recipe} - network)
    differing = [name for name in names if len({run.recipe.get(name) for run in runs}) > 1]
    return [f"These runs differ in {', '.join(differing)} as well."] if differing else []


def _numbers(found: Sequence[Outcome]) -> Table:
    rows = []
    for outcome in found:
        cells = [outcome.network.label, str(len(outcome.runs))]
        for errors in (outcome.errors, outcome.validation):
            mean = f"{statistics.fmean(errors):.2f}" if errors else ""
            several = len(errors) > 1
            cells.append(f"{mean} ± {statistics.stdev(errors):.2f}" if several else mean)
            cells.append(f"{min(errors):.2f} to {max(errors):.2f}" if several else "")
        rows.append(tuple(cells))
    head = ("network", "runs", "training error, %", "range", "validation error, %", "range")
    return Table(head, rows, tuple(range(1, 6)))
