"""What ranks report when a job hangs, and the sentence that names who holds it up.

A report is `stacks/rank-<r>.txt` in the run's folder: who the rank is, where it stands, and the
Python stacks of all its threads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.peers import Peer

_NAMED = 3  # laggards that the sentence describes; the reports have the rest
_LINE = re.compile(r"^phase (\S+) of step (\d+) for ([\d.]+) s, (at work|waiting)", re.MULTILINE)


@dataclass(frozen=True)
class Beat:
    """Where a rank stands."""

    phase: str
    step: int
    age_sec: float
    """Seconds since the rank came here."""
    waiting: bool
    """Whether it waits for the other ranks, in a collective."""

    def __str__(self) -> str:
        return f"phase {self.phase} of step {self.step} for {self.age_sec:.0f} s"

    def line(self) -> str:
        """The second line of a report."""
        doing = "waiting for the other ranks" if self.waiting else "at work"
        place = f"phase {self.phase} of step {self.step} for {self.age_sec:.1f} s"
        return f"{place}, {doing}; the main thread's stack is the last\n"


@dataclass(frozen=True)
class Report:
    """What is known of one rank."""

    peer: Peer
    beat: Beat | None
    """None: its Python runs no more, so that only the C part of its watchdog may have spoken."""
    has_stacks: bool

    @property
    def given(self) -> bool:
        """Whether the rank has reported in one way or the other."""
        return self.beat is not None or self.has_stacks


def report_path(folder: Path, rank: int) -> Path:
    """Where the report of `rank` lies in `folder`."""
    return folder / f"rank-{rank}.txt"


def read_report(folder: Path, peer: Peer) -> Report:
    """The report of a rank as far as it is written."""
    try:
        text = report_path(folder, peer.rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = _LINE.search(text)
    beat = None
    if found:
        phase, step, age_sec, doing = found.groups()
        beat = Beat(phase, int(step), float(age_sec), doing == "waiting")
    return Report(peer, beat, "hread 0x" in text)  # "Thread 0x..." and "Current thread 0x..."


def find_laggards(reports: Sequence[Report], limit_sec: float) -> list[Report]:
    """The ranks that hold the others up, by rank.

    Those that do not answer and those busy beyond the limit; else any that do not wait for others;
    else those at the lowest step. Empty when all wait for each other at the same step.
    """
    busy = [r for r in reports if r.beat is not None and not r.beat.waiting]
    late = [r for r in busy if r.beat is not None and r.beat.age_sec >= limit_sec]
    found = [r for r in reports if r.beat is None or r in late] or busy
    if not found:
        steps = [r.beat.step for r in reports if r.beat is not None]
        found = [r for r in reports if r.beat is not None and r.beat.step == min(steps)]
        if len(found) == len(reports):
            return []
    return found


def explain(reports: Sequence[Report], limit_sec: float, folder: Path) -> str:
    """The first cause of a hang: who holds the job up, in which phase, and what to do."""
    laggards = find_laggards(reports, limit_sec)
    if laggards:
        parts = [_described(report, folder) for report in laggards[:_NAMED]]
        if len(laggards) > _NAMED:
            parts.append(f"so do {len(laggards) - _NAMED} more ranks")
    else:
        parts = [f"all {len(reports)} ranks wait for each other, so look at network and GPUs"]
    waiting = [r for r in reports if r.beat is not None and r.beat.waiting and r not in laggards]
    if waiting:
        longest = max(waiting, key=lambda r: r.beat.age_sec if r.beat else 0.0)
        parts.append(f"rank {longest.peer.rank} has waited in {longest.beat}")
    return (
        f"no progress within run.step_timeout_sec={limit_sec:g}: {'; '.join(parts)}; the stacks of "
        f"all ranks that could answer stand in {folder}; start again to go on from the last "
        "checkpoint, with a higher run.step_timeout_sec if this was honest work"
    )


def _described(report: Report, folder: Path) -> str:
    if report.beat is not None:
        doing = f"has been in {report.beat}"
    elif trouble := report.peer.trouble():
        return f"{report.peer} {trouble}"
    elif report.has_stacks:
        doing = "is stuck in native code that holds Python's lock (GIL)"
    else:
        return f"{report.peer} does not answer: it is stopped, dead or cut off from {folder}"
    return f"{report.peer} {doing} (stack in {report_path(folder, report.peer.rank)})"
