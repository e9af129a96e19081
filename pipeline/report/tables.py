"""Our errors next to those of the paper and of later work. Matched by what a run's configuration
says, never by its name; a row for which nothing was run stays empty."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from pipeline.report import references
from pipeline.report.pages import Block, Heading, Paragraph, Table
from pipeline.report.references import IMAGENET_CROP, MULTI_SCALES, Recipe, Reference
from pipeline.report.runs import Evaluation, Run, date
from pipeline.system.console import counted

_WEIGHTS = {"ema": "EMA of the weights", "raw": "raw weights, not their EMA"}
_ABOUT_OURS = (
    "Errors in %, top-1, or top-1 / top-5; in brackets the mean over classes of top-1 where it is "
    "another number. Several runs that differ in their seed also have a line with their mean ± the "
    "standard deviation between them (divided by n - 1)."
)
_ABOUT = f"{_ABOUT_OURS} Ours is empty where nothing was run."
_HEAD = ("network", "test", "source", "theirs, %", "ours, %", "our run")


@dataclass(frozen=True)
class Result:
    """One evaluation and its run."""

    run: Run
    evaluation: Evaluation

    @property
    def data_set(self) -> str | None:
        """The data set whose published errors it compares with; None for anything else."""
        return self.run.data_set if self.run.is_whole(self.evaluation) else None

    @property
    def in_summary(self) -> bool:
        """Whether the report's first table has it and no published number compares with it."""
        return self.evaluation.in_training and self.data_set is None

    @property
    def group(self) -> tuple[object, ...]:
        """The key that results averaged over seeds share."""
        run = self.run
        kind = replace(
            self.evaluation, step=0, top1=0.0, top5=0.0, balanced=0.0, dataset=None, time=None
        )
        recipe = tuple(sorted(run.recipe.items()))
        return kind, run.finished, recipe, str(run.settings["data.root"])

    @property
    def origin(self) -> str:
        """The run it comes from: name, step, images and date, and what is special about it."""
        e, run = self.evaluation, self.run
        # The crop of the published errors; for other data that of the run itself.
        usual_crop = IMAGENET_CROP if self.data_set == "imagenet-1k" else run.crop
        parts = [run.name, f"step {e.step:,} of {run.settings['data.global_batch_size']} images"]
        parts += [] if run.finished else ["run unfinished"]
        parts += [counted(e.images, "image"), date(e.time)]
        parts += [f"of {e.other_root}"] if e.other_root else []
        parts += ["validation in training"] if e.in_training else []
        parts += [_WEIGHTS[e.weights]] if e.weights else []
        parts += [f"ensemble of {e.ensemble}"] if e.ensemble > 1 else []
        if e.scales:
            parts.append("scales " + " ".join(map(str, e.scales)))
            parts += ["mirrored too"] if e.mirror else []
        elif e.crop != usual_crop:
            parts.append("crop {} of {}".format(*e.crop))
        parts += e.changed
        parts += [f"BN statistics over {e.bn_images} training images"] if e.bn_images else []
        return ", ".join(parts)


def is_of(result: Result, reference: Reference, data_set: str) -> bool:
    """Whether a result has the network, test, data and recipe of a reference."""
    e, network = result.evaluation, reference.network
    if (result.data_set, e.protocol, e.ensemble) != (
        data_set, reference.protocol, reference.ensemble,
    ):  # fmt: skip
        return False
    if reference.protocol == "multi-scale":
        # The pooling window of a fully convolutional net follows from the side of the crop.
        if set(e.scales) != set(MULTI_SCALES) or e.crop[0] != IMAGENET_CROP[0]:
            return False
    elif data_set == "imagenet-1k" and e.crop != IMAGENET_CROP:
        return False
    return network in (None, result.run.network) and _follows(result.run, reference.recipe)


def _follows(run: Run, recipe: Recipe) -> bool:
    settings = run.settings
    if recipe.epochs is not None:
        in_steps = settings["schedule.steps"] is not None
        if in_steps or abs(settings["schedule.epochs"] - recipe.epochs) > 0.5:
            return False
    warmup, batch = settings["schedule.warmup_epochs"] > 0, settings["data.global_batch_size"]
    return recipe.warmup in (None, warmup) and recipe.global_batch_size in (None, batch)


def comparison_blocks(runs: Sequence[Run]) -> list[Block]:
    """The tables of references that have a result of ours, whole; then the results without a
    reference. Empty without a result."""
    found = [Result(run, evaluation) for run in runs for evaluation in run.evaluations]
    used: set[int] = set()
    compared: list[Block] = []
    for table in references.tables():
        rows: list[tuple[str, ...]] = []
        any_ours = False
        for reference in table.rows:
            mine = [result for result in found if is_of(result, reference, table.data)]
            used |= {id(result) for result in mine}
            any_ours = any_ours or bool(mine)
            rows += _rows(reference, mine)
        if any_ours:
            compared += [Heading(table.title, 3), Table(_HEAD, rows, (3, 4))]
    rest = [result for result in found if id(result) not in used]
    blocks: list[Block] = []
    if compared:
        blocks += [Heading("Compared with the paper and later work"), Paragraph(_ABOUT), *compared]
    own = _own_table(rest)
    if own.rows:
        blocks += [Heading("Results without a published number" if compared else "Results")]
        blocks += [own] if compared else [Paragraph(_ABOUT_OURS), own]
    return blocks


def _rows(reference: Reference, mine: Sequence[Result]) -> list[tuple[str, ...]]:
    """The reference with our first line (the mean, where there is one), then our other lines."""
    name = reference.network.label if reference.network else f"ensemble of {reference.ensemble}"
    source = reference.source + (f" ({reference.note})" if reference.note else "")
    theirs = (name, reference.protocol, source, _stated(reference))
    return _labelled(theirs, _our_lines(mine) or [("", "")])


def _labelled(labels: tuple[str, ...], lines: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """A row of a table for each line, of which the first has the labels too."""
    blank = ("",) * len(labels)
    return [(*(blank if i else labels), *line) for i, line in enumerate(lines)]


def _stated(reference: Reference) -> str:
    if reference.top1 is None:
        return f"top-5 {reference.top5:.2f}" if reference.top5 is not None else ""
    decimals = 1 if reference.source in ("released weights", "FFCV") else 2
    text = f"{reference.top1:.{decimals}f}"
    text += f" ± {reference.spread:.2f}" if reference.spread is not None else ""
    return text + (f" / {reference.top5:.{decimals}f}" if reference.top5 is not None else "")


def _our_lines(mine: Sequence[Result]) -> list[tuple[str, str]]:
    """(error, origin) of every result that the summary does not have, and above them the mean over
    seeds."""
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in mine:
        groups.setdefault(result.group, []).append(result)
    lines = []
    for members in groups.values():
        # A run with two results of the same kind (two checkpoints) would count twice in a mean.
        if len({result.run.folder for result in members}) == len(members) > 1:
            names = [result.run.name for result in members if result.in_summary]
            of = f": {', '.join(names)}" if names else ""
            lines.append((_mean(members), f"mean of {len(members)} runs{of}"))
        lines += [
            (percent(result.evaluation), result.origin)
            for result in members
            if not result.in_summary
        ]
    return lines


def percent(one: Evaluation) -> str:
    """The errors of a result, with the mean over classes where that is another number."""
    text = f"{one.top1:.2f}" + ("" if one.top5 is None else f" / {one.top5:.2f}")
    same = one.balanced is None or abs(one.balanced - one.top1) < 0.005
    return text if same else f"{text} ({one.balanced:.2f})"


def _mean(members: Sequence[Result]) -> str:
    errors = [[one.evaluation.top1 for one in members]]
    top5 = [one.evaluation.top5 for one in members if one.evaluation.top5 is not None]
    errors += [top5] if len(top5) == len(members) else []
    return " / ".join(
        f"{statistics.fmean(found):.2f} ± {statistics.stdev(found):.2f}" for found in errors
    )


def _own_table(mine: Sequence[Result]) -> Table:
    """A table of our results alone, by data, network and test; without rows if the summary has them
    all."""
    kinds: dict[tuple[str, ...], list[Result]] = {}
    for result in mine:
        labels = (result.run.data_label, result.run.network.label, result.evaluation.protocol)
        kinds.setdefault(labels, []).append(result)
    by_kind = [_labelled(labels, _our_lines(members)) for labels, members in kinds.items()]
    rows = list(chain.from_iterable(by_kind))
    return Table(("data", "network", "test", "error, %", "run"), rows, (3,))
