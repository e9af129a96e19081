"""Ends a hung job, and names the rank that holds it up.

Every rank watches its own heartbeat from a thread. One that finds no progress reports its state and
stacks, asks the others to do the same, and the lowest rank that still answers names the culprit.

A job is watched from its connections to its end. There is no run's folder to report in before the
run is locked, and none at all without a run: until `move` the ranks of a host report to each other
in its temporary folder. Every start of a job reports in folders of its own name, so that a rank of
an earlier one that wakes up tells this one nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.ranks.heartbeat import Beat, Heartbeat, Peer
from pipeline.ranks.reports import (
    Limit,
    Report,
    collectives_path,
    explain,
    find_laggards,
    pulse_path,
    read_report,
    report_path,
)
from pipeline.system.failure import ExitCode, say_error
from pipeline.system.files import named

if TYPE_CHECKING:
    from pipeline.ranks.world import World


_FROZEN_SEC = 2.0  # beyond the limit: the C timer writes the stacks
_REPORTS_SEC = 10.0  # how long a rank waits for the reports of the others
_SPEECH_SEC = 3.0  # time for the rank that names the cause: the first exit ends the job
# Beyond the limit: SIGALRM ends a process that could not end itself; a single one waits for nobody.
_ALARM_SEC, _ALARM_ALONE_SEC = 30.0, 5.0
_WAKE_SEC = 10.0  # for a single process that was paused beyond that, before its next alarm
_DUMP_SEC = 0.5  # the C timer needs some milliseconds to write what it has begun
_TOLD = "told"  # the file of whoever speaks first where there is no run

OnHang = Callable[[str], object]


@contextlib.contextmanager
def watched(world: World, limit: Limit | None, wanted: bool = True) -> Iterator[Watchdog]:
    """Watches over the body on this rank, at first in this host's temporary folder; `limit` None:
    not until `Watchdog.within` gives one; not `wanted`: never."""
    if not wanted:
        yield Unwatched(Path(), world.peers, world.rank, world.heartbeat, None, None)
        return
    folder = Path(tempfile.gettempdir()) / f"trainyard-{os.getuid()}-{world.start}"
    watchdog = Watchdog(folder, world.peers, world.rank, world.heartbeat, limit, None)
    watchdog.last_collectives = world.last_collectives
    watchdog.make_folder()
    watchdog.open_report()
    world.heartbeat.beat("start")
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.close()


class Watchdog:
    """Watches one rank. `peers` are all ranks of the job, by rank; they share `folder`, or without
    `on_hang` those of this host do.

    `on_hang` gets the reason of a hang before its rank leaves; None: one rank of the host says it.
    """

    def __init__(
        self, folder: Path, peers: Sequence[Peer], rank: int, heartbeat: Heartbeat,
        limit: Limit | None, on_hang: OnHang | None,
    ) -> None:  # fmt: skip
        self._folder, self._on_hang = folder, on_hang
        self._everyone, self._rank = list(peers), rank
        self._heartbeat, self._limit = heartbeat, limit
        self.last_collectives: Callable[[], bytes | None] = lambda: None
        """What the engine has recorded of them, for those who look into a hang."""
        self._report = self._pulse = -1
        self._files = threading.Lock()  # of the folder, while it changes
        self._asked_at, self._pulsed_at, self._pulses = 0.0, 0.0, 0
        self._heard: bytes | None = None  # the others' pulses at the last look in this wait
        self._looked_at, self._heard_at = 0.0, -math.inf  # of that look, and of a change
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def _peers(self) -> list[Peer]:
        """The ranks that report in this folder."""
        me = self._everyone[self._rank]
        return [p for p in self._everyone if self._on_hang is not None or p.host == me.host]

    @property
    def _elsewhere(self) -> list[Peer]:
        """The ranks that do not."""
        return (
            []
            if self._on_hang is not None
            else [p for p in self._everyone if p.host != self._everyone[self._rank].host]
        )

    @property
    def _asked_file(self) -> Path:
        return self._folder / "asked"  # not empty: every rank is to report

    def make_folder(self) -> None:
        """Makes the folder, if it is not there, before any `open_report` in it."""
        self._folder.mkdir(mode=0o777 if self._on_hang else 0o700, parents=True, exist_ok=True)
        with open(self._asked_file, "ab"):
            pass

    def open_report(self) -> None:
        """Creates the rank's report with its name only; for every rank, before any `start`.

        The files through which ranks talk are there before any rank needs them: a network file
        system shows other hosts what is in a known file at once, a new one up to a minute late.
        """
        path, flags = report_path(self._folder, self._rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._report = os.open(path, flags | os.O_APPEND, 0o666)
        self._pulse = os.open(pulse_path(self._folder, self._rank), flags, 0o666)
        head = f"{self._everyone[self._rank]}; the main thread's stack is the last\n"
        with named(path):
            os.write(self._report, head.encode())
            os.fsync(self._report)
            self._write_pulse()  # takes its room while the disk has some

    def _write_pulse(self) -> None:
        os.pwrite(self._pulse, b"%020d" % self._pulses, 0)
        os.fdatasync(self._pulse)

    def move(self, folder: Path, world: World, on_hang: OnHang) -> None:
        """Collective. From now on all ranks report in `folder`, on a file system that they
        share."""
        new = Watchdog(folder, self._everyone, self._rank, self._heartbeat, self._limit, on_hang)
        world.on_rank0(new.make_folder)
        world.together(new.open_report)
        with self._files:
            self._remove_files()
            self._folder, self._on_hang = new._folder, on_hang
            self._report, self._pulse = new._report, new._pulse
            self._push_back()

    @contextlib.contextmanager
    def within(self, limit: Limit | None) -> Iterator[None]:
        """Another `limit` in the body; None: none."""
        before = self._limit
        self._limit_is(limit)
        try:
            yield
        finally:
            self._limit_is(before)

    def _limit_is(self, limit: Limit | None) -> None:
        self._heartbeat.beat(self._heartbeat.now().phase)  # the time until now counts no more
        with self._files:
            self._limit = limit
            self._push_back()

    def start(self) -> None:
        """Begins to watch."""
        self._push_back()
        self._thread.start()

    def close(self) -> None:
        """Stops watching and removes its files; does not return once a hang was found."""
        self._closing.set()
        self._thread.join()
        self._limit = None
        self._push_back()
        self._remove_files()

    def _remove_files(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        os.close(self._report)
        os.close(self._pulse)
        mine = [report_path(self._folder, self._rank), pulse_path(self._folder, self._rank)]
        if self._rank == self._peers[0].rank:
            mine.append(self._asked_file)
        for path in mine:
            with contextlib.suppress(OSError):  # what stays must not end a run that is done
                path.unlink()
        with contextlib.suppress(OSError):  # done by the last rank
            self._folder.rmdir()
            if self._on_hang is not None:  # else that is the temporary folder itself
                self._folder.parent.rmdir()  # if no other start has left its reports there

    def _push_back(self) -> None:
        # 60 us, most of it for a new thread of faulthandler's: too dear for each beat.
        if self._limit is None:
            faulthandler.cancel_dump_traceback_later()
            signal.alarm(0)
            return
        faulthandler.dump_traceback_later(self._limit.sec + _FROZEN_SEC, file=self._report)
        if self._alone:
            _spare_next_alarm()
            signal.setitimer(signal.ITIMER_REAL, self._limit.sec + _ALARM_ALONE_SEC, _WAKE_SEC)
        else:
            signal.alarm(math.ceil(self._limit.sec + _ALARM_SEC))

    @property
    def _alone(self) -> bool:
        return len(self._everyone) == 1

    def _watch(self) -> None:
        begun = time.monotonic()
        while not self._closing.wait(min(1.0, self._limit.sec / 5 if self._limit else 1.0)):
            begun, before = time.monotonic(), begun
            with self._files:
                if self._alone and self._limit and begun - before > max(2.0, self._limit.sec / 2):
                    # It was paused, and nobody waits for it.
                    self._heartbeat.beat(self._heartbeat.now().phase)
                self._push_back()
                limit = self._limit
                if limit is None:
                    continue
                beat = self._heartbeat.now()
                if self._hangs(beat, limit):
                    self._end_job(beat, limit)
                elif (asked := self._asked(limit)) is not None:
                    self._end_job(beat, asked)

    def _hangs(self, beat: Beat, limit: Limit) -> bool:
        """Whether this rank makes no progress, and waits for none that does."""
        now, often_sec = time.monotonic(), limit.sec / 5
        if not beat.waiting and often_sec <= now - self._pulsed_at > beat.age_sec:
            self._pulsed_at, self._pulses = now, self._pulses + 1
            with contextlib.suppress(OSError):
                self._write_pulse()
        if not beat.waiting or beat.age_sec < often_sec:
            self._heard = None
        elif now - self._looked_at >= often_sec:
            self._listen(now)
        if beat.age_sec < limit.sec:
            return False
        if beat.waiting and self._elsewhere:
            # One of another host, which is not heard here, may do honest work; if it hangs, its own
            # watch ends the job. Nobody watches in a process that is stopped or dead.
            return any(peer.trouble() for peer in self._peers)
        return not beat.waiting or now - self._heard_at >= limit.sec

    def _listen(self, now: float) -> None:
        """Looks whether another rank has had a pulse since the last look: it does honest work, for
        which this one waits, as when one rank indexes the data for all."""
        found = b""
        for peer in self._peers:
            with contextlib.suppress(OSError):
                found += pulse_path(self._folder, peer.rank).read_bytes()
        if self._heard is not None and found != self._heard:
            self._heard_at = now
        self._heard, self._looked_at = found, now

    def _asked(self, limit: Limit) -> Limit | None:
        """The limit by which another rank has found a hang, which a busy rank may not notice
        itself, or not yet; None if none has."""
        if time.monotonic() < self._asked_at + min(5.0, limit.sec / 5):
            return None
        self._asked_at = time.monotonic()
        try:
            line = self._asked_file.read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, ValueError):
            return None
        return (Limit.read(line) or limit) if line else None

    def _end_job(self, beat: Beat, limit: Limit) -> None:
        """Reports, waits for the reports of others, and exits the process; SIGALRM ends it if a
        dead file system or a full pipe blocks it here."""
        try:
            self._write_report(beat, limit)
            reports = self._wait_for_reports()
            elsewhere = self._elsewhere
            message = explain(reports, limit, self._folder, elsewhere)
            speaker = min(r.peer.rank for r in reports if r.beat is not None)
            # Who waits for another host lets that one speak.
            if self._rank != speaker or (elsewhere and not find_laggards(reports, limit.sec)):
                time.sleep(_SPEECH_SEC)
            self._tell(message)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(ExitCode.FAILED)  # no clean-up: it would wait for ranks that may never come

    def _tell(self, message: str) -> None:
        if self._on_hang is not None:
            self._on_hang(message)
            return
        try:
            with open(self._folder / _TOLD, "xb"):
                pass
        except FileExistsError:
            return
        except OSError:
            pass  # it is said twice rather than not at all
        say_error(f"rank {self._rank}: {message}" if len(self._everyone) > 1 else message)

    def _write_report(self, beat: Beat, limit: Limit) -> None:
        faulthandler.cancel_dump_traceback_later()
        os.write(self._report, beat.as_json.encode())
        faulthandler.dump_traceback(file=self._report, all_threads=True)
        os.fsync(self._report)
        with open(self._asked_file, "ab") as file:
            file.write(limit.as_json.encode())
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


class Unwatched(Watchdog):
    """In the place of a watchdog, for a process that must not be ended: leaves its alarm and
    faulthandler's timer alone."""

    def move(self, folder: Path, world: World, on_hang: OnHang) -> None:
        """Does nothing."""

    @contextlib.contextmanager
    def within(self, limit: Limit | None) -> Iterator[None]:
        """Does nothing besides the body."""
        yield


def _spare_next_alarm() -> None:
    """The next SIGALRM does nothing, and the one after it ends the process: one that was paused
    finds the first pending when it goes on. No handler of Python's, which would ignore both while
    native code holds Python's lock."""
    libc = ctypes.CDLL(None)
    libc.sysv_signal.argtypes = (ctypes.c_int, ctypes.c_void_p)  # a handler for one signal only
    libc.sysv_signal.restype = ctypes.c_void_p
    libc.sysv_signal(signal.SIGALRM, ctypes.cast(libc.abs, ctypes.c_void_p))
