"""All runs below a folder, and what keeps the other folders from being one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.observing.state import RunState, is_run, read_state


@dataclass
class Listing:
    """Runs, the one with the newest sign of life last, and (folder, reason) of what is none."""

    runs: list[RunState] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def list_runs(below: Path) -> Listing:
    """The runs below `below`, or the one that it is. Raises ValueError if `below` is no folder."""
    if not below.is_dir():
        what = "is a file" if below.exists() else "does not exist"
        raise ValueError(f"{below} {what}; give a folder of runs, such as runs/, or one run's")
    listing = Listing()
    for folder, reason in _search(below):
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
        found = [] if child.is_symlink() and not is_run(child) else list(_search(child))
        if any(not reason or reason != _NO_RUN for _, reason in found):
            yield from found
        else:
            yield child, _NO_RUN


_NO_RUN = "is no run: it has no config.yaml and no lock"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, two spaces between them, with no blank at a line's end."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def describe(listing: Listing, below: Path) -> str:
    """The list for people, one line a run."""
    head = ("run", "state", "network", "epoch", "step", "best top-1", "last sign", "where", "note")
    lines = [table(head, [_row(run, below) for run in listing.runs])] if listing.runs else []
    lines += [f"skipped: {folder} {reason}" for folder, reason in listing.skipped]
    return "\n".join(lines)


def _row(run: RunState, below: Path) -> tuple[str, ...]:
    inside = run.folder != below
    epoch = "-"
    if run.epoch is not None:
        epoch = f"{run.epoch:g}" if run.epochs is None else f"{run.epoch:.1f}/{run.epochs:g}"
    where = "-"
    if run.holder is not None:
        job = f", job {run.holder.slurm_job}" if run.holder.slurm_job else ""
        where = run.holder.host + job
    return (
        str(run.folder.relative_to(below)) if inside else run.folder.name,
        run.state,
        run.network or "-",
        epoch,
        f"{run.step}/{'?' if run.total_steps is None else run.total_steps}",
        "-" if run.best_top1 is None else f"{run.best_top1:.2%}",
        "-" if run.age_sec is None else f"{duration(run.age_sec)} ago",
        where,
        run.note,
    )


def duration(seconds: float) -> str:
    """Rounded down to one unit: 12 s, 3 min, 5 h, 2 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"
