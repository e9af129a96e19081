"""Processes and heartbeats of a job's ranks, and what one rank sees of another on its host."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_DIED = (
    "died without a word, killed by a signal or out of memory (see dmesg)",
    ("Z", "X"),
)
_STOPPED = ("is stopped (SIGSTOP, Ctrl-Z or a debugger)", ("T", "t"))


@dataclass(frozen=True)
class Peer:
    """The process of one rank."""

    rank: int
    host: str
    pid: int
    addresses: tuple[str, ...] = ()
    """Those of its host by which others may know it; for ranks that check in."""

    @classmethod
    def here(cls, rank: int) -> Peer:
        """This process as rank `rank`."""
        return cls(rank, socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid}) on {self.host}"

    @property
    def alive(self) -> bool:
        """Whether the process has not ended, as far as this host sees."""
        return self.trouble() != _DIED[0]

    def trouble(self) -> str | None:
        """Why the process cannot answer, as the end of a sentence about it.

        None for one that lives, and for one on another host, which cannot be seen.
        """
        if self.host != socket.gethostname():
            return None
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return _DIED[0]
        state = stat.rpartition(")")[2].split()[0]
        return next((words for words, states in (_DIED, _STOPPED) if state in states), None)


@dataclass(frozen=True)
class Beat:
    """The state of a rank: step and phase."""

    phase: str
    step: int
    age_sec: float
    """Seconds since the rank entered the phase."""
    waiting: bool
    """Whether it waits for the other ranks, in a collective."""

    def __str__(self) -> str:
        return f"phase {self.phase} of step {self.step} for {self.age_sec:.0f} s"

    @property
    def as_json(self) -> str:
        """One line of a report."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def read(cls, line: str) -> Beat | None:
        """Parses a line of a report; None if the line is incomplete, or something else."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            return None


class Heartbeat:
    """The current state of this rank, in memory. Any thread may read it at any time."""

    def __init__(self) -> None:
        self._last = (time.monotonic(), "start", 0)
        self._longest_sec = 0.0
        self.waiting = False
        """Set while the rank waits for the others in a collective."""

    def beat(self, phase: str, step: int | None = None) -> None:
        """Records that the rank begins `phase`, or makes progress in it; the same step unless
        given."""
        last, now = self._last, time.monotonic()
        self._longest_sec = max(self._longest_sec, now - last[0])
        self._last = (now, phase, last[2] if step is None else step)

    @contextmanager
    def waits(self) -> Iterator[None]:
        """The rank waits for the others in the body, a collective."""
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False

    def take_longest_sec(self) -> float:
        """The longest time between two beats since the last call."""
        longest, self._longest_sec = self._longest_sec, 0.0
        return longest

    def now(self) -> Beat:
        """The rank's state at this moment."""
        since, phase, step = self._last
        return Beat(phase, step, time.monotonic() - since, self.waiting)
