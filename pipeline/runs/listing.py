"""All runs below a folder, and what keeps the other folders from being one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.runs.differences import distinctions, in_short
from pipeline.runs.state import RunState, duration, is_run, read_state
from pipeline.system.text import table


@dataclass
class Listing:
    """Runs, the one with the newest sign of life last, and (folder, reason) of what is none."""

    runs: list[RunState] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def list_runs(below: Path) -> Listing:
    """The runs below `below`, or the one that it is; none below what is no folder."""
    listing = Listing()
    for folder, reason in _search(below) if below.is_dir() else ():
        if not reason:
            try:
                listing.runs.append(read_state(folder))
                continue
            except OSError as error:
                reason = _unreadable(error)
            except ValueError as error:
                reason = str(error)
        listing.skipped.append((folder, reason))
    listing.runs.sort(key=lambda run: (run.last_sign or 0.0, run.folder))
    return listing


def run_folders(below: Path) -> list[Path]:
    """The folders of the runs below `below`, in order, not looked into; none if it is no folder."""
    return [folder for folder, reason in _search(below) if not reason] if below.is_dir() else []


def _unreadable(error: OSError) -> str:
    name = f" of {Path(error.filename).name}" if error.filename else ""
    return f"cannot be read ({error.strerror}{name})"


def _search(folder: Path) -> Iterator[tuple[Path, str]]:
    """Runs, with an empty reason, and the topmost folders without any, with the reason."""
    try:
        if is_run(folder):
            yield folder, ""
            return
        with os.scandir(folder) as entries:
            inner = sorted(Path(e.path) for e in entries if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        yield folder, _unreadable(error)
        return
    for child in inner:
        try:
            found = [] if child.is_symlink() and not is_run(child) else list(_search(child))
        except OSError as error:  # a link into somebody else's folder
            yield child, _unreadable(error)
            continue
        if any(not reason or reason != _NO_RUN for _, reason in found):
            yield from found
        else:
            yield child, _NO_RUN


_NO_RUN = "is no run: it has no config.yaml and no lock"


def as_json(listing: Listing) -> dict[str, Any]:
    """The list in plain values."""
    runs = zip(listing.runs, distinctions(listing.runs), strict=True)
    return {
        "runs": [run.as_json | {"differs_in": differing} for run, differing in runs],
        "skipped": [{"folder": str(f), "reason": reason} for f, reason in listing.skipped],
    }


_HEAD = (
    "run", "state", "network", "differs in", "epoch", "step", "img/s", "best top-1", "last sign",
    "where", "note",
)  # fmt: skip


def describe(listing: Listing, below: Path) -> str:
    """The list for people, one line a run."""
    differing = map(in_short, distinctions(listing.runs))
    rows = [_row(run, below, diff) for run, diff in zip(listing.runs, differing, strict=True)]
    lines = [table(_HEAD, rows)] if rows else []
    lines += [f"skipped: {folder} {reason}" for folder, reason in listing.skipped]
    return "\n".join(lines)


def _row(run: RunState, below: Path, differing: str) -> tuple[str, ...]:
    inside = run.folder != below
    where = "-"
    if run.holder is not None:
        job = f", job {run.holder.slurm_job}" if run.holder.slurm_job else ""
        where = run.holder.host + job
    speed = run.images_per_sec
    return (
        str(run.folder.relative_to(below)) if inside else run.folder.name,
        run.state,
        run.network or "-",
        differing,
        _epoch(run),
        f"{run.step}/{'?' if run.total_steps is None else run.total_steps}",
        "-" if speed is None else f"{speed:,.0f}",
        "-" if run.best_top1 is None else f"{run.best_top1:.2%}",
        "-" if run.age_sec is None else f"{duration(run.age_sec)} ago",
        where,
        run.note,
    )


def _epoch(run: RunState) -> str:
    """Passes over the training images, of how many; two digits where all of it is less than one."""
    if run.epoch is None:
        return "-"
    if run.epochs is None:
        return f"{run.epoch:g}"
    digits = 1 if run.epochs >= 1 else 2
    return f"{run.epoch:.{digits}f}/{round(run.epochs, digits):g}"
