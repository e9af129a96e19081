"""Ends a hung job, and names the rank that holds it up.

Every rank watches its own heartbeat from a thread. One that finds no progress reports its state and
stacks, asks the others to do the same, and the lowest rank that still answers names the culprit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.ranks.heartbeat import Beat, Heartbeat, Peer
from pipeline.system.failure import ExitCode

if TYPE_CHECKING:
    from pipeline.ranks.world import World


_NAMED = 3  # laggards that the sentence describes; the reports have the rest


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
        f"all ranks that could answer are in {folder}; start again to resume from the last "
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


_FROZEN_SEC = 2.0  # beyond the limit: the C timer writes the stacks
_REPORTS_SEC = 10.0  # how long a rank waits for the reports of the others
_SPEECH_SEC = 3.0  # time for the rank that names the cause: the first exit ends the job
# Beyond the limit: SIGALRM ends a process that could not end itself; a single one waits for nobody.
_ALARM_SEC, _ALARM_ALONE_SEC = 30.0, 5.0
_DUMP_SEC = 0.5  # the C timer needs some milliseconds to write what it has begun


@contextlib.contextmanager
def watched(
    folder: Path, world: World, limit_sec: float | None, on_hang: Callable[[str], object]
) -> Iterator[None]:
    """Collective. Watches over the body on every rank; `limit_sec` None: not at all.

    The ranks report in `folder`; `on_hang` gets the reason of a hang before its rank leaves.

    The files through which ranks talk are there before any rank needs them: a network file system
    shows other hosts what is in a known file at once, but a new file up to a minute late.
    """
    if limit_sec is None:
        yield
        return
    watchdog = Watchdog(folder, world.peers, world.rank, world.heartbeat, limit_sec, on_hang)
    watchdog.last_collectives = world.last_collectives
    world.on_rank0(watchdog.make_folder)
    world.together(watchdog.open_report)
    world.heartbeat.beat("start")
    watchdog.start()
    try:
        yield
    finally:
        watchdog.close()


class Watchdog:
    """Watches one rank. `peers` are all ranks of the job, by rank; they share `folder`."""

    def __init__(
        self, folder: Path, peers: Sequence[Peer], rank: int, heartbeat: Heartbeat,
        limit_sec: float, on_hang: Callable[[str], object],
    ) -> None:  # fmt: skip
        self._folder, self._on_hang = folder, on_hang
        self._asked_file = self._folder / "asked"  # not empty: every rank is to report
        self._peers, self._rank = list(peers), rank
        self._heartbeat, self._limit_sec = heartbeat, limit_sec
        self.last_collectives: Callable[[], bytes | None] = lambda: None
        """What the engine has recorded of them, for those who look into a hang."""
        beyond_sec = _ALARM_SEC if len(self._peers) > 1 else _ALARM_ALONE_SEC
        self._alarm_sec = math.ceil(limit_sec + beyond_sec)
        self._look_sec = min(1.0, limit_sec / 5)
        self._ask_sec = min(5.0, limit_sec / 5)
        self._asked_at = 0.0
        self._report = -1
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def make_folder(self) -> None:
        """Makes the folder; for one rank, before any `open_report`."""
        self._folder.mkdir(exist_ok=True)
        self._asked_file.write_bytes(b"")

    def open_report(self) -> None:
        """Creates the rank's report with its name only; for every rank, before any `start`."""
        path = report_path(self._folder, self._rank)
        self._report = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        head = f"{self._peers[self._rank]}; the main thread's stack is the last\n"
        os.write(self._report, head.encode())
        os.fsync(self._report)

    def start(self) -> None:
        """Begins to watch."""
        self._push_back()
        self._thread.start()

    def close(self) -> None:
        """Stops watching and removes its files; does not return once a hang was found."""
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        os.close(self._report)
        report_path(self._folder, self._rank).unlink(missing_ok=True)
        if self._rank == 0:
            self._asked_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # done by the last rank

    def _push_back(self) -> None:
        # 60 us, most of it for a new thread of faulthandler's: too dear for each beat.
        faulthandler.dump_traceback_later(self._limit_sec + _FROZEN_SEC, file=self._report)
        signal.alarm(self._alarm_sec)

    def _watch(self) -> None:
        while not self._closing.wait(self._look_sec):
            self._push_back()
            beat = self._heartbeat.now()
            if beat.age_sec >= self._limit_sec or self._asked():
                self._end_job(beat)

    def _asked(self) -> bool:
        """Whether another rank has found a hang, which a busy rank may not notice itself."""
        if time.monotonic() < self._asked_at + self._ask_sec:
            return False
        self._asked_at = time.monotonic()
        try:
            return bool(self._asked_file.read_bytes())
        except OSError:
            return False

    def _end_job(self, beat: Beat) -> None:
        """Reports, waits for the reports of others, and exits the process; SIGALRM ends it if a
        dead file system or a full pipe blocks it here."""
        try:
            self._write_report(beat)
            reports = self._wait_for_reports()
            message = explain(reports, self._limit_sec, self._folder)
            speaker = min(r.peer.rank for r in reports if r.beat is not None)
            if self._rank != speaker:
                time.sleep(_SPEECH_SEC)
            self._on_hang(message)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(ExitCode.FAILED)  # no clean-up: it would wait for ranks that may never come

    def _write_report(self, beat: Beat) -> None:
        faulthandler.cancel_dump_traceback_later()
        os.write(self._report, beat.as_json.encode())
        faulthandler.dump_traceback(file=self._report, all_threads=True)
        os.fsync(self._report)
        with open(self._asked_file, "ab") as file:
            file.write(f"{self._peers[self._rank]}\n".encode())
        with contextlib.suppress(Exception):  # what they do not tell must not hide who hangs
            if (recorded := self.last_collectives()) is not None:
                collectives_path(self._folder, self._rank).write_bytes(recorded)

    def _wait_for_reports(self) -> list[Report]:
        end = time.monotonic() + _REPORTS_SEC
        while True:
            reports = [read_report(self._folder, peer) for peer in self._peers]
            if all(r.given or r.peer.trouble() for r in reports) or time.monotonic() > end:
                time.sleep(_DUMP_SEC)
                return reports
            time.sleep(0.2)
