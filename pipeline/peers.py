"""The processes of a job's ranks, and what one rank can see of another on its own host."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_DIED = (
    "died without a word, killed by a signal or for lack of memory (see dmesg)",
    ("Z", "X"),
)
_STOPPED = ("is stopped (SIGSTOP, Ctrl-Z or a debugger)", ("T", "t"))


@dataclass(frozen=True)
class Peer:
    """The process of one rank."""

    rank: int
    host: str
    pid: int

    @classmethod
    def here(cls, rank: int) -> Peer:
        """This process as rank `rank`."""
        return cls(rank, socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid}) on {self.host}"

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
