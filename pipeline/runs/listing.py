"""Lists the runs below a folder, finds a run by name, and compares their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, names_of
from pipeline.config.differences import differing, in_short
from pipeline.config.differences import distinctions as told_apart
from pipeline.config.idle import idle_settings
from pipeline.config.setting import shown
from pipeline.runs.layout import UNKNOWN, compared, fitted
from pipeline.runs.state import RunState, duration, read_state
from pipeline.system.console import table
from pipeline.system.words import printable, shell_word
from pipeline.train.folder import RunFolder, find_runs, search, why_no_run, why_unreadable


@dataclass
class Listing:
    """Runs, the one with the newest sign of life last, and (folder, reason) for other folders."""

    runs: list[RunState] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def list_runs(below: Path) -> Listing:
    """The runs below `below`, or `below` itself if it is one; none if it is no folder."""
    listing = Listing()
    for folder, reason in search(below):
        if not reason:
            try:
                listing.runs.append(read_state(folder))
                continue
            except OSError as error:
                reason = why_unreadable(error)
            except ValueError as error:
                reason = str(error)
        listing.skipped.append((folder, reason))
    listing.runs.sort(key=lambda run: (run.last_sign or 0.0, run.folder))
    return listing


def as_json(listing: Listing) -> dict[str, Any]:
    """The list in plain values."""
    runs = zip(listing.runs, distinctions(listing.runs), strict=True)
    return {
        "runs": [run.as_json | {"differs_in": differing} for run, differing in runs],
        "skipped": [{"folder": str(f), "reason": reason} for f, reason in listing.skipped],
    }


_ROOT = "data.root"
_HEAD = (
    "run", "state", "network", "differs in", "epoch", "step", "img/s", "best top-1", "last sign",
    "where", "note",
)  # fmt: skip


def describe(listing: Listing, below: Path, width: int | None = None) -> str:
    """The list for people: on a terminal of `width` columns with what does not fit below each run,
    else (a file or a program reads it) one line a run, whatever its length."""
    different = (in_short(found) or UNKNOWN for found in distinctions(listing.runs))
    rows = [_row(run, below, diff) for run, diff in zip(listing.runs, different, strict=True)]
    lines = []
    if rows:
        lines = [table(_HEAD, rows) if width is None else fitted(_HEAD, rows, width)]
    lines += [printable(f"skipped: {folder} {reason}") for folder, reason in listing.skipped]
    return "\n".join(lines)


def _row(run: RunState, below: Path, differing: str) -> tuple[str, ...]:
    inside = run.folder != below
    where = UNKNOWN
    if run.holder is not None:
        job = f", job {run.holder.slurm_job}" if run.holder.slurm_job else ""
        where = run.holder.host + job
    speed = run.images_per_sec
    return (
        str(run.folder.relative_to(below)) if inside else run.folder.name,
        run.state,
        run.network or UNKNOWN,
        differing,
        _epoch(run),
        f"{run.step}/{'?' if run.total_steps is None else run.total_steps}",
        UNKNOWN if speed is None else f"{speed:,.0f}",
        _best(run),
        UNKNOWN if run.age_sec is None else f"{duration(run.age_sec)} ago",
        where,
        run.note,
    )


def _best(run: RunState) -> str:
    """The best top-1 of the network in best.pt: of the average of the weights if there is one."""
    if run.best_ema_top1 is not None:
        return f"{run.best_ema_top1:.2%} EMA"
    return UNKNOWN if run.best_top1 is None else f"{run.best_top1:.2%}"


def _epoch(run: RunState) -> str:
    """Passes over the training images, out of all; two digits if all are less than one."""
    if run.epoch is None or run.epochs is None:
        return UNKNOWN
    digits = 1 if run.epochs >= 1 else 2
    return f"{run.epoch:.{digits}f}/{round(run.epochs, digits):g}"


def distinctions(runs: Sequence[RunState]) -> list[dict[str, Any]]:
    """For each run the settings, by `part.name`, that differ among the runs of its network on its
    data, the most asked-for first; and before them its data if the network has runs on others.
    Settings without effect in a run do not count there.

    Empty for the only run of a network, and for a run without a configuration.
    """
    groups: dict[tuple[str | None, Any], list[int]] = {}
    roots: dict[str | None, set[Any]] = {}
    for number, run in enumerate(runs):
        if run.settings:
            root = run.settings[_ROOT]
            groups.setdefault((run.network, root), []).append(number)
            roots.setdefault(run.network, set()).add(root)
    found: list[dict[str, Any]] = [{} for _ in runs]
    for (network, root), members in groups.items():
        data = {_ROOT: root} if len(roots[network]) > 1 else {}
        counting = [_counting(runs[number]) for number in members]
        for number, own in zip(members, told_apart(counting), strict=True):
            found[number] = data | own
    return found


def _counting(run: RunState) -> dict[str, Any]:
    # The name is shown anyway, and settings of a start are not of the run.
    own = {name for name in names_of("place") if name.startswith("run.")}
    left_out = {*idle_settings(run.settings), *own, *names_of("start")}
    return {name: value for name, value in run.settings.items() if name not in left_out}


def differences(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, by `part.name`, each with its value in every run;
    versions of packages and the commit as `versions.<name>`, None where a run does not say.

    Raises ValueError for a folder that is no run, has no configuration or cannot be read.
    """
    found = differing([_facts(folder) for folder in folders])
    found.pop("run.name", None)
    return found


def _facts(folder: Path) -> dict[str, Any]:
    run = RunFolder(folder)
    try:
        if not run.config.is_file():
            raise ValueError(why_no_run(run))
        versions = run.last("start").get("versions", {})
        return run.settings() | {f"versions.{name}": value for name, value in versions.items()}
    except OSError as error:
        raise ValueError(f"{folder} {why_unreadable(error)}; give runs of yours") from error


def describe_differences(
    folders: Sequence[Path], found: dict[str, list[Any]], width: int | None = None
) -> str:
    """The differences for people: one line a setting, one column a run, unless a terminal of
    `width` columns is too narrow for that."""
    if not found:
        return "the runs have the same settings"
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    rows = [(name, *map(shown, values)) for name, values in found.items()]
    return compared(("setting", *names), rows, width)


def find_run(name: str, below: Path) -> Path:
    """The run of this name below `below`, or the one in the folder of this path.

    Raises ConfigError, naming the place searched: for a path, the folder that it names.
    """
    folders = (below / name, Path(name))
    for folder in folders:
        try:
            if RunFolder(folder).is_run:
                return folder
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be read: {error.strerror}; give a run of yours"
            ) from error
    there = next((folder for folder in folders if folder.exists()), None)
    if there is not None and not find_runs(there):
        raise ConfigError(why_no_run(RunFolder(there)))
    if there is None and "/" in name:
        above = [folder.parent for folder in folders]
        name, below = Path(name).name, next(filter(Path.is_dir, above), above[0])
    raise ConfigError(
        f"there is no run {name} below {below}/; python -m pipeline.runs "
        f"{shell_word(str(there or below))} lists those there are"
    )
