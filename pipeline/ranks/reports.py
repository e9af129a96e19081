"""What the ranks of a hung job report, and who by it holds the others up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.ranks.heartbeat import Beat, Peer
from pipeline.system.console import counted

_NAMED = 3  # laggards that the sentence describes; the reports have the rest


@dataclass(frozen=True)
class Limit:
    """How long a rank may go without progress, by which setting, and what a new start continues
    from."""

    sec: float
    setting: str = "run.step_timeout_sec"
    advice: str = "start again to resume from the last checkpoint"

    @property
    def as_json(self) -> str:
        """The limit as one line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def read(cls, line: str) -> Limit | None:
        """Parses such a line; None if it is another."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            return None


def start_limit(sec: float | None) -> Limit | None:
    """The limit run.start_timeout_sec=`sec` of what is no step; None: none."""
    return None if sec is None else Limit(sec, "run.start_timeout_sec", "start again")


@dataclass(frozen=True)
class Report:
    """The report of one rank."""

    peer: Peer
    beat: Beat | None
    """None: its Python no longer runs, so that only the C part of its watchdog may have
    reported."""
    has_stacks: bool

    @property
    def given(self) -> bool:
        """Whether the rank has reported in either way."""
        return self.beat is not None or self.has_stacks


def report_path(folder: Path, rank: int) -> Path:
    """The path of the report of `rank` in `folder`."""
    return folder / f"rank-{rank}.txt"


def pulse_path(folder: Path, rank: int) -> Path:
    """The path of what changes in `folder` while `rank` makes progress."""
    return folder / f"rank-{rank}.pulse"


def collectives_path(folder: Path, rank: int) -> Path:
    """The path of the last collectives of `rank` in `folder`, where the engine records them."""
    return folder / f"rank-{rank}-collectives.json"


def read_report(folder: Path, peer: Peer) -> Report:
    """Reads the report of a rank as far as it is written."""
    try:
        text = report_path(folder, peer.rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = (line for line in text.splitlines(keepends=True) if line.startswith("{"))
    has_stacks = "hread 0x" in text  # "Thread 0x..." and "Current thread 0x..."
    return Report(peer, Beat.read(next(lines, "")), has_stacks)


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


def explain(
    reports: Sequence[Report], limit: Limit, folder: Path, elsewhere: Sequence[Peer] = ()
) -> str:
    """The first cause of a hang: who holds the job up, in which phase, and what to do. `elsewhere`
    are ranks whose reports are not known here."""
    laggards = find_laggards(reports, limit.sec)
    if laggards:
        parts = [_described(report, folder) for report in laggards[:_NAMED]]
        if len(laggards) > _NAMED:
            parts.append(f"so do {len(laggards) - _NAMED} more ranks")
    elif elsewhere:
        hosts = ", ".join(dict.fromkeys(peer.host for peer in elsewhere))
        who = counted(len(reports), "rank")
        wait = "waits" if len(reports) == 1 else "wait"
        parts = [f"the {who} on {reports[0].peer.host} {wait} for those on {hosts}"]
    else:
        parts = [f"all {len(reports)} ranks wait for each other, so look at network and GPUs"]
    waiting = [r for r in reports if r.beat is not None and r.beat.waiting and r not in laggards]
    if waiting:
        longest = max(waiting, key=lambda r: r.beat.age_sec if r.beat else 0.0)
        parts.append(f"rank {longest.peer.rank} has waited in {longest.beat}")
    return (
        f"no progress within {limit.setting}={limit.sec:g}: {'; '.join(parts)}; the stacks of all "
        f"ranks that could answer are in {folder}; {limit.advice}, with a higher {limit.setting} "
        "if this was honest work"
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
