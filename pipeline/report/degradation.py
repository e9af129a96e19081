"""The paper's question, answered by the runs: does a deeper net train worse?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
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


_HEAD = (
    "network", "runs", "training error, %", "validation error, %", "change, points", "so it trains",
)  # fmt: skip
_SENTENCE = (
    "Training error is top-1 over the augmented images of the last "
    f"{LAST_SHARE:.0%} of a finished run's iterations, in brackets the range over runs or, of a "
    "single one, two standard deviations of counting so many images; where the ranges of two "
    "depths overlap, no difference is shown."
)


def degradation_blocks(by_data: Mapping[str, Sequence[Run]]) -> list[Block]:
    """The section of the report: for each data set, by its name, a table of the depths that both
    kinds of networks have. Empty where no data set has finished runs of four such networks."""
    tables: list[tuple[str, list[Block]]] = []
    for data, runs in by_data.items():
        pairs = changes(outcomes(runs))
        if pairs:
            table = Table(_HEAD, _rows(pairs), (1, 2, 3, 4))
            tables.append((data, [table, *_left_unsaid(pairs, runs)]))
    if not tables:
        return []
    blocks: list[Block] = [
        Heading("Degradation: does a deeper net train worse?"), Paragraph(_SENTENCE),
    ]  # fmt: skip
    for data, found in tables:
        blocks += [Heading(data, 3)] if len(by_data) > 1 else []
        blocks += found
    return blocks


def _rows(pairs: Sequence[tuple[Outcome, Outcome]]) -> list[tuple[str, ...]]:
    """Each kind of network by depth, every deeper one compared with the shallowest."""
    rows: dict[Network, tuple[str, ...]] = {}
    for shallow, deep in sorted(pairs, key=lambda pair: pair[0].network):  # stable: by depth
        rows.setdefault(shallow.network, (*_numbers(shallow), "", ""))
        rows.setdefault(deep.network, (*_numbers(deep), *_change(shallow, deep)))
    return list(rows.values())


def _numbers(outcome: Outcome) -> tuple[str, ...]:
    errors = outcome.validation
    validation = f"{statistics.fmean(errors):.2f}" if errors else ""
    if len(errors) > 1:
        validation += f" ({min(errors):.2f} to {max(errors):.2f})"
    return outcome.network.label, str(len(outcome.runs)), outcome.text, validation


def _change(shallow: Outcome, deep: Outcome) -> tuple[str, str]:
    """The effect of depth on one kind of net: points, and what they show."""
    points = deep.mean - shallow.mean
    (low, high), (other_low, other_high) = shallow.interval, deep.interval
    by_chance = low <= other_high and other_low <= high  # a value that both intervals have
    trains = "no difference shown" if by_chance else "worse" if points > 0 else "better"
    return f"{points:+.2f}", trains


def _left_unsaid(pairs: Sequence[tuple[Outcome, Outcome]], runs: Sequence[Run]) -> list[Block]:
    """What a reader must know to trust the table: the settings, besides the network's, in which the
    compared runs differ, and the runs that are not compared."""
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
