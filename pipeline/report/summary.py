"""The tables of a report's runs: what became of each, and at the end what each was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.differences import distinctions, in_short
from pipeline.model.network import Network
from pipeline.report.degradation import LAST_SHARE, final_training_error
from pipeline.report.pages import Block, Heading, Paragraph, Table
from pipeline.report.runs import Run, date
from pipeline.report.tables import percent

_HEAD = (
    "run", "network", "images", "differs in", "epochs", "training error, %",
    "validation error, %", "at epoch", "state",
)  # fmt: skip
_TRAINING = (
    f"Training error is top-1 over the augmented images of the last {LAST_SHARE:.0%} of the "
    "iterations."
)
_VALIDATION = (
    "Validation error is that of the best validation: top-1, or top-1 / top-5; in brackets the "
    "mean over classes of top-1 where it is another number."
)
_NUMBERS = (4, 5, 6, 7)


def summary_blocks(by_data: Mapping[str, Sequence[Run]]) -> list[Block]:
    """One line for each run: how far it came and its errors. `by_data` has the runs of each data
    set by its name. A column in which no run has anything is left out."""
    different = _differences([run for runs in by_data.values() for run in runs])
    several = len(by_data) > 1
    rows = [
        (run.name, run.network.label, data if several else "", different[run.folder],
         *_reached(run), "" if run.finished else "unfinished")
        for data, runs in by_data.items() for run in runs
    ]  # fmt: skip
    blocks: list[Block] = [_without_empty(Table(_HEAD, rows, _NUMBERS))]
    said = [_TRAINING] if any(row[5] for row in rows) else []
    said += [_VALIDATION] if any(row[6] for row in rows) else []
    return [*blocks, *([Paragraph(" ".join(said))] if said else [])]


def _differences(runs: Sequence[Run]) -> dict[object, str]:
    """By its folder, for each run the settings in which runs of its network on its data differ."""
    groups: dict[tuple[str, Network], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data_label, run.network), []).append(run)
    found: dict[object, str] = {}
    for members in groups.values():
        known = [
            {name: run.settings[name] for name in (*run.recipe, "run.seed")} for run in members
        ]
        for run, apart in zip(members, distinctions(known), strict=True):
            found[run.folder] = in_short(apart)
    return found


def _reached(run: Run) -> tuple[str, str, str, str]:
    """Epochs done, training error, the best validation's error and its epoch."""
    final = final_training_error(run)
    training = "" if final is None else f"{final.error:.2f}"
    epochs = _short(run.epochs_at(run.step))
    validated = run.events("val")
    if not validated:
        return epochs, training, "", ""
    best = max(validated, key=_top1)
    result = run.of_validation(best)[0]
    error = percent(result) + (" EMA" if result.weights else "")
    return epochs, training, error, _short(run.epochs_at(result.step))


def _top1(line: Mapping[str, float]) -> float:
    """What best.pt is chosen by: the average of the weights where there is one."""
    return float(line.get("ema_top1", line["top1"]))


def _short(epochs: float | None) -> str:
    if epochs is None:
        return ""
    return f"{epochs:.2f}" if 0 < epochs < 1 else f"{epochs:.1f}".removesuffix(".0")


def _without_empty(table: Table) -> Table:
    kept = [i for i in range(len(table.head)) if any(row[i] for row in table.rows)]
    return Table(
        tuple(table.head[i] for i in kept),
        [tuple(row[i] for i in kept) for row in table.rows],
        tuple(at for at, i in enumerate(kept) if i in table.numbers),
    )


def origin_blocks(runs: Sequence[Run]) -> list[Block]:
    """What every number was read from: where each run and its images lie, and its versions."""
    return [
        Heading("Where the numbers come from"),
        Table(
            ("run", "images", "seed", "steps", "finished", "last line", "commit", "versions",
             "folder"),
            [_origin(run) for run in runs], (2, 3),
        ),
    ]  # fmt: skip


def _origin(run: Run) -> tuple[str, ...]:
    found = run.start.get("versions", {})
    others = [f"{name} {version}" for name, version in found.items() if name != "commit"]
    return (
        run.name, run.data_label, str(run.settings["run.seed"]), f"{run.step:,}",
        "yes" if run.finished else "no", date(run.time), found.get("commit", "unknown"),
        ", ".join(others), str(run.folder),
    )  # fmt: skip
