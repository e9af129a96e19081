"""Hands the lines of a run to a tracker from a thread of its own, so that no step waits for one."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.train.monitor.guarded import warn_of
from pipeline.train.monitor.observer import DRAWN, Observer

log = logging.getLogger("trainyard")

MOST_WAITING = 10_000
"""Lines that wait for a tracker, of about 1 kB each; those beyond are left out."""
CLOSE_SEC = 10.0
"""How long a run that is stopped waits for its last lines to arrive: Slurm kills 30 s after it asks
a job to stop."""
DONE_SEC = 100.0
"""How long a finished run does, which nobody resumes."""

Line = Mapping[str, Any]


class Tracker(ABC):
    """A place that keeps the curves of many runs, used by one thread. It may raise anything."""

    @abstractmethod
    def open(self) -> None:
        """Finds this run there, or begins it."""

    @abstractmethod
    def send(self, line: Line) -> None:
        """Adds a line of training or validation, unless the tracker has it already."""

    @abstractmethod
    def close(self, done: bool) -> None:
        """Ends this start of the run, which is finished if `done`."""


class Sender(Observer):
    """Sends `kept`, the lines of earlier starts, and then each new one.

    A line that a tracker refuses is tried again before the next one; so the curve has no gap where
    a server was away. A tracker that cannot be opened gets nothing.
    """

    def __init__(self, name: str, tracker: Tracker, kept: Sequence[Line]) -> None:
        self._name, self._tracker = name, tracker
        self._unsent = deque(line for line in kept if line["event"] in DRAWN)
        self._new: queue.Queue[Line | None] = queue.Queue(MOST_WAITING)
        self._warned = self._gone = self._done = False
        self._end_at = math.inf  # until when the end waits for it; inf: it has not been told
        self._thread = threading.Thread(target=self._work, name=f"to {name}", daemon=True)
        self._thread.start()

    def see(self, line: Line) -> None:
        self._done = self._done or line["event"] == "done"
        if line["event"] not in DRAWN or self._gone:
            return
        try:
            self._new.put_nowait(line)
        except queue.Full:
            full = TimeoutError("too many lines wait for it; the next start sends them")
            self._warn(full, "misses some lines")

    def begin_close(self) -> None:
        """Tells the thread that there are no more lines; all trackers together have their time."""
        self._end_at = time.monotonic() + self._limit_sec
        with contextlib.suppress(queue.Full):
            self._new.put_nowait(None)

    def close(self) -> None:
        if self._end_at == math.inf:
            self.begin_close()
        with contextlib.suppress(queue.Full):  # the thread hangs, as is seen next
            self._new.put(None, timeout=max(0.0, self._end_at - time.monotonic()))
        self._thread.join(max(0.0, self._end_at - time.monotonic()))
        if self._thread.is_alive():
            self._gone = True
            later = "" if self._done else ", and a start that resumes this run sends it"
            log.warning(
                "warning: %s of run.loggers took no more lines within %g s of the end; what it "
                "misses is in metrics.jsonl%s", self._name, self._limit_sec, later,
            )  # fmt: skip

    @property
    def _limit_sec(self) -> float:
        return DONE_SEC if self._done else CLOSE_SEC

    def _work(self) -> None:
        try:
            self._tracker.open()
        except Exception as error:
            self._gone = True
            self._warn(error, "gets nothing from this start")
            return
        while not self._gone:
            self._send_all()
            line = self._new.get()
            if line is None:
                break
            self._unsent.append(line)
        self._send_all()
        try:
            self._tracker.close(self._done)
        except Exception as error:
            self._warn(error, "may miss its last lines")

    def _send_all(self) -> None:
        try:
            while self._unsent and not self._gone:
                self._tracker.send(self._unsent[0])
                self._unsent.popleft()
        except Exception as error:
            while len(self._unsent) > MOST_WAITING:
                self._unsent.popleft()
            self._warn(error, "is tried again with each line")

    def _warn(self, error: Exception, and_now: str) -> None:
        if not self._warned:
            self._warned = True
            warn_of(self._name, error, and_now)
