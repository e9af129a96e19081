"""How a job of several ranks ended: its last words and its exit code, from what the ranks left."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from pipeline.system import console
from pipeline.system.failure import ExitCode, say_error
from pipeline.train.folder import RunFolder, Stop

# A network file system may show a file that another node has written only after a while.
PATIENCE_SEC = 5.0


def say(line: str) -> None:
    """Prints a line of the launcher itself to the job's log."""
    console.say(f"launch: {line}")


def exit_code(code: int) -> int:
    """What the ranks returned, as one of the pipeline's exit codes."""
    return code if code in (ExitCode.FINISHED, ExitCode.WRONG_INPUT) else ExitCode.FAILED


def again(saved: bool) -> str:
    """What to do after a stop. One before the first step, and of an evaluation, saves nothing."""
    return "start it again to resume from its checkpoint" if saved else "start it again"


class LastWords:
    """What the ranks of a job write about its end into the folder of its run, if it has one.

    Created before the ranks start, so that older files are known.
    """

    may_come_late = True
    """Whether a rank may have written a file that is not seen here yet."""

    def __init__(self, run_dir: Path | None) -> None:
        self.run = None if run_dir is None else RunFolder(run_dir)
        self._before = self._words()

    def cause(self) -> str | None:
        """The first cause of a failure that the ranks have written; None if there is none."""
        found = self._wait_for_words()
        if self.run is None or self.run.failure not in found:
            return None
        return self.run.first_cause()

    def _wait_for_words(self) -> dict[Path, str]:
        """What the ranks have written about their end, by file; waits a moment for the first."""
        end = time.monotonic() + PATIENCE_SEC
        while self.run is not None:
            if self.run.path.is_dir():
                os.listdir(self.run.path)  # makes NFS look again
            now = self._words().items()
            new = {path: word[1] for path, word in now if word != self._before.get(path)}
            if new or time.monotonic() > end or not self.may_come_late:
                return new
            time.sleep(0.5)
        return {}

    def _words(self) -> dict[Path, tuple[int, str]]:
        """When each existing file about the end was written, and its content."""
        found = {}
        for path in (self.run.failure, self.run.stop) if self.run is not None else ():
            with contextlib.suppress(OSError):
                found[path] = path.stat().st_mtime_ns, path.read_text("utf-8", "replace")
        return found


class End(LastWords, ABC):
    """Finds out how a job ended, and says it."""

    def report(self, code: int, received: signal.Signals | None) -> int:
        """Prints how the ranks ended, on the last lines of the log; returns the exit code.

        `code` is what the ranks returned, `received` the signal that the launcher got, if any.
        """
        if code == 0:
            return ExitCode.FINISHED
        run, found = self.run, self._wait_for_words()
        if run is not None and run.failure in found:
            self.say_cause(run, found[run.failure])
            return exit_code(code)
        if run is not None and run.stop in found:  # a full disk has room for its name only
            by = Stop.read(found[run.stop]).signal
            return self.stopped(by or (received.name if received is not None else ""))
        return self.without_record(code, received)

    def say_cause(self, run: RunFolder, found: str) -> None:
        """Prints what failure.txt holds."""
        if found:
            console.say(*found.rstrip("\n").split("\n"), stream=sys.stderr)
        else:
            say_error(run.first_cause() or "")

    @abstractmethod
    def without_record(self, code: int, received: signal.Signals | None) -> int:
        """Prints the end of ranks that have left no word in the run's folder; the exit code."""

    def early(self, received: signal.Signals) -> int:
        """Handles a signal that came before the first step; returns the exit code."""
        say(f"{received.name} came before the first step")
        return self.stopped(received.name, saved=False)

    def stopped(self, by: str, saved: bool = True) -> int:
        """Prints what to do after a stop by the signal named `by`, which this start has `saved` or
        not; returns the exit code."""
        say(f"stopped; {again(saved)}")
        return ExitCode.STOPPED
