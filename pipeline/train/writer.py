"""Saves off the path of training: rank 0 copies what a checkpoint holds, and a thread writes it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.ranks.heartbeat import Heartbeat
from pipeline.system.failure import in_words
from pipeline.train.saving import CheckpointFolder, SaveError
from pipeline.train.snapshot import Snapshot

log = logging.getLogger("trainyard")


class CheckpointWriter:
    """Writes the checkpoints of a start into `folder`, in order and one at a time.

    A save that fails costs its checkpoint, not the run: it is reported at the first one in a row,
    the 10th, the 100th and so on, and the next save tries again. Only the last one of a start must
    succeed. Built on every rank, used by rank 0.
    """

    def __init__(
        self, folder: CheckpointFolder, device: torch.device, heartbeat: Heartbeat
    ) -> None:
        self.snapshot = Snapshot(device)
        self._folder, self._heartbeat = folder, heartbeat
        self._thread: threading.Thread | None = None
        self._missed = 0  # saves in a row that failed
        self._written = False  # whether one has succeeded

    def save(
        self, step: int, content: Mapping[str, Any], best: bool = False, last: bool = False
    ) -> None:
        """Copies `content` of the checkpoint before step `step`, and begins to write it, after any
        write in flight. The `last` one of a start is written when this returns, or its error
        raised, such as `SaveError`."""
        self.wait()
        if last:
            self._write(step, self.snapshot.take(content), best)
            return
        try:
            arguments = (step, self.snapshot.take(content), best)
            thread = threading.Thread(
                target=self._try, args=arguments, name="checkpoint", daemon=True
            )
            thread.start()
        except (MemoryError, RuntimeError) as error:  # no memory for the copies, or no thread
            self._miss(step, best, error)
        else:
            self._thread = thread

    def wait(self) -> None:
        """Returns when no write is in flight. A file system that does not answer holds it up: the
        watchdog looks at the phase around it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def in_flight(self) -> bool:
        """Whether a write is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """As `wait`, and gives the memory of the copies back. However a run ends, it keeps the lock
        of its folder for as long as it writes there."""
        self._settle()
        self.snapshot.release()

    def outcome(self) -> dict[str, bool]:
        """After any write in flight, what a line of metrics says about it: `saved`, false, where
        saves have failed and the run has no checkpoint; else nothing. A run whose lines do not say
        so has lost its checkpoints when there are none."""
        self._settle()
        if not self._missed or self._written:
            return {}
        with contextlib.suppress(OSError):
            if self._folder.steps():
                return {}
        return {"saved": False}

    def _settle(self) -> None:
        """As `wait`, in a phase of its own."""
        if self._thread is not None:
            self._heartbeat.beat("checkpoint")
            self.wait()

    def _try(self, step: int, content: Mapping[str, Any], best: bool) -> None:
        try:
            self._write(step, content, best)
        except Exception as error:  # whatever it is: nothing else hears of it in this thread
            self._miss(step, best, error)

    def _write(self, step: int, content: Mapping[str, Any], best: bool) -> None:
        self.snapshot.wait()
        path = self._folder.save(step, content, best)
        self._written = True
        if self._missed:
            self._missed = 0
            log.info("saves succeed again: checkpoint %s is written", path)

    def _miss(self, step: int, best: bool, error: Exception) -> None:
        self._missed += 1
        if str(self._missed).rstrip("0") != "1":
            return
        if isinstance(error, SaveError):
            reason, fix = error.reason, error.fix
        else:
            reason = f"checkpoint {self._folder.path(step)} is not written: {in_words(error)}"
            fix = "see to that"
        log.warning(
            "warning: %s; %s: training continues and tries again at the next save%s%s",
            reason, fix,
            ", but best.pt stays that of an earlier validation" if best else "",
            f"; {self._missed} saves are missed by now" if self._missed > 1 else "",
        )  # fmt: skip
