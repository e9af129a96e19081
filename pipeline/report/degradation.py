"""The paper's question, answered by the runs: does a deeper net train worse?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.config import settings
from pipeline.model.network import Network
from pipeline.report.pages import Block, Heading, Paragraph, Table
from pipeline.report.runs import Run

LAST_SHARE = 0.05
"""Share of a run's iterations at the end whose images give the final training error."""


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


@dataclass(frozen=True)
class Outcome:
    """The finished runs of one network on one data set, with their final training errors."""

    network: Network
    runs: tuple[Run, ...]
    training: tuple[FinalError, ...]

    @property
    def errors(self) -> list[float]:
        """The training errors in %."""
        return [final.error for final in self.training]

    @property
    def validation(self) -> list[float]:
        """The errors in % of the last validations in training."""
        last = [line for run in self.runs for line in run.events("val")[-1:]]
        return [100 * (1 - float(line["top1"])) for line in last]

    @property
    def mean(self) -> float:
        """Mean of the training errors."""
        return statistics.fmean(self.errors)

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the training error: the range over runs; for one run the counting
        error."""
        around = self.training[0].uncertainty if len(self.training) == 1 else 0.0
        return min(self.errors) - around, max(self.errors) + around

    @property
    def text(self) -> str:
        """The training error and its interval, as text."""
        low, high = self.interval
        return f"{self.mean:.2f} ({low:.2f} to {high:.2f})"


def outcomes(runs: Iterable[Run]) -> list[Outcome]:
    """One for each network among the finished `runs`, which are on the same data."""
    found: dict[Network, list[tuple[Run, FinalError]]] = {}
    for run in runs:
        error = final_training_error(run)
        if run.finished and error is not None:
            found.setdefault(run.network, []).append((run, error))
    return [
        Outcome(network, *zip(*members, strict=True)) for network, members in sorted(found.items())
    ]


def changes(found: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Pairs (shallow, deep) of plain and then of residual nets, for each pair of depths that both
    kinds have: every deeper one against the shallowest."""
    plain = {(o.network.family, o.network.depth): o for o in found if not o.network.residual}
    kinds: dict[object, list[Outcome]] = {}
    for outcome in found:
        network = outcome.network
        if network.residual and (network.family, network.depth) in plain:
            kinds.setdefault(network.kind, []).append(outcome)
    pairs = []
    for shallow, *deeper in kinds.values():  # outcomes of one kind come by depth
        family = shallow.network.family
        for deep in deeper:
            depths = shallow.network.depth, deep.network.depth
            pairs += [(plain[family, depths[0]], plain[family, depths[1]]), (shallow, deep)]
    return pairs


_CHANGES = ("shallower", "training error, %", "deeper", "training error, %", "points", "it trains")
_NUMBERS = ("network", "runs", "training error, %", "range", "validation error, %", "range")


def degradation_blocks(by_data: dict[str, list[Run]]) -> list[Block]:
    """The section of the report: the pairs of depths on each data set, and the numbers."""
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
    about = len(blocks)
    for data, runs in by_data.items():
        found = outcomes(runs)
        pairs = changes(found)
        if pairs:
            blocks += [
                Heading(f"On {data}", 3),
                Table(_CHANGES, [_change(*pair) for pair in pairs], (1, 3, 4)),
                *_left_unsaid(pairs, runs),
                Table(_NUMBERS, [_numbers(outcome) for outcome in found], tuple(range(1, 6))),
            ]
    if len(blocks) == about:
        blocks.append(
            Paragraph(
                "Not yet run: this needs finished runs of a plain and of a residual net, each in "
                "the same two depths, on the same data."
            )
        )
    return blocks


def _change(shallow: Outcome, deep: Outcome) -> tuple[str, ...]:
    """The effect of depth on one kind of net."""
    points = deep.mean - shallow.mean
    (low, high), (other_low, other_high) = shallow.interval, deep.interval
    by_chance = low <= other_high and other_low <= high  # a value that both intervals have
    trains = "no difference shown" if by_chance else "worse" if points > 0 else "better"
    names = shallow.network.label, shallow.text, deep.network.label, deep.text
    return (*names, f"{points:+.2f}", trains)


def _left_unsaid(pairs: Sequence[tuple[Outcome, Outcome]], runs: Sequence[Run]) -> list[Block]:
    """The settings, besides the network's, in which the compared runs differ, and the runs that are
    not compared."""
    compared = [run for pair in pairs for outcome in pair for run in outcome.runs]
    network = {name for name, said in settings().items() if said.of_network}
    names = sorted({name for run in compared for name in run.recipe} - network)
    differing = [name for name in names if len({run.recipe.get(name) for run in compared}) > 1]
    unfinished = [run.name for run in runs if not run.finished]
    found: list[Block] = []
    if differing:
        runs_named = ", ".join(dict.fromkeys(run.name for run in compared))
        found.append(Paragraph(f"The runs {runs_named} differ in {', '.join(differing)} as well."))
    if unfinished:
        found.append(Paragraph(f"Left out as unfinished: {', '.join(unfinished)}."))
    return found


def _numbers(outcome: Outcome) -> tuple[str, ...]:
    cells = [outcome.network.label, str(len(outcome.runs))]
    for errors in (outcome.errors, outcome.validation):
        mean = f"{statistics.fmean(errors):.2f}" if errors else ""
        several = len(errors) > 1
        cells.append(f"{mean} ± {statistics.stdev(errors):.2f}" if several else mean)
        cells.append(f"{min(errors):.2f} to {max(errors):.2f}" if several else "")
    return tuple(cells)
