"""How a Slurm job ended: its last messages, its exit code, and whether it is requeued."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from launch.slurm import say
from launch.slurm.allocation import Allocation, Killed, output_of
from pipeline.config import ConfigError
from pipeline.system import console
from pipeline.system.failure import ExitCode, say_error
from pipeline.train.folder import Checkpoints, RunFolder, Stop

# A network file system may show a file that another node has written only after a while.
_PATIENCE_SEC = 5.0


def exit_code(code: int) -> int:
    """What srun returned, as one of the pipeline's exit codes."""
    return code if code in (ExitCode.FINISHED, ExitCode.WRONG_INPUT) else ExitCode.FAILED


class End:
    """Finds out how a job ended from the files that its ranks leave in the run's folder, if any.

    Created before the ranks start, so that older files are known. `requeue` allows requeueing the
    job.
    """

    def __init__(self, run_dir: Path | None, allocation: Allocation, requeue: bool) -> None:
        self._run = None if run_dir is None else RunFolder(run_dir)
        self._job = allocation.job
        self._restarts, self._may_requeue = allocation.restarts, requeue
        self._before = self._words()
        self._step_before = self._newest_step()

    def report(self, code: int, received: signal.Signals | None) -> int:
        """Prints how the ranks ended, on the last lines of the log; returns the exit code.

        `code` is what srun returned, `received` the signal that the launcher got, if any.
        """
        if code == 0:
            return ExitCode.FINISHED
        run, found = self._run, self._wait_for_words()
        if run is not None and run.failure in found:
            if found[run.failure]:
                console.say(*found[run.failure].rstrip("\n").split("\n"), stream=sys.stderr)
            else:
                say_error(run.first_cause() or "")
            return exit_code(code)
        if run is not None and run.stop in found:  # a full disk has room for its name only
            by = Stop.read(found[run.stop]).signal
            return self._stopped(by or (received.name if received is not None else ""))
        if received is not None:  # it reached ranks that did not listen yet
            return self.early(received)
        if code == ExitCode.WRONG_INPUT or run is None:
            say(f"srun ended with code {code}; the cause is above")
            return exit_code(code)
        say_error(
            f"srun ended with code {code} and the ranks left no cause in {run.path}; see the "
            f"lines above, and sacct -j {self._job} for a signal, exhausted memory or a lost node"
        )
        return ExitCode.FAILED

    def early(self, received: signal.Signals) -> int:
        """Handles a signal that came before the first step; returns the exit code."""
        say(f"{received.name} came before the first step")
        return self._stopped(received.name)

    def _stopped(self, by: str) -> int:
        if by != "SIGUSR1" or not self._may_requeue:
            say("stopped; start it again to resume from its checkpoint, unless Slurm does")
        elif self._newest_step() > self._step_before or self._restarts == 0:
            requeue(self._job)
        else:
            # Otherwise a limit too short for a start would keep nodes busy for ever.
            say(
                "stopped, and not requeued, since this start did not make a step; give the job "
                "more --time than its start and the warning (--signal) take"
            )
        return ExitCode.STOPPED

    def _newest_step(self) -> int:
        """Step of the newest checkpoint, by its name; -1 without any."""
        steps = [] if self._run is None else Checkpoints(self._run.checkpoints).steps()
        return max(steps, default=-1)

    def _wait_for_words(self) -> dict[Path, str]:
        """What the ranks have written about their end, by file; waits a moment for the first."""
        end = time.monotonic() + _PATIENCE_SEC
        while self._run is not None:
            if self._run.path.is_dir():
                os.listdir(self._run.path)  # makes NFS look again
            now = self._words().items()
            new = {path: word[1] for path, word in now if word != self._before.get(path)}
            if new or time.monotonic() > end:
                return new
            time.sleep(0.5)
        return {}

    def _words(self) -> dict[Path, tuple[int, str]]:
        """When each existing file about the end was written, and its content."""
        found = {}
        for path in (self._run.failure, self._run.stop) if self._run is not None else ():
            with contextlib.suppress(OSError):
                found[path] = path.stat().st_mtime_ns, path.read_text("utf-8", "replace")
        return found


def requeue(job: str) -> None:
    """Requeues the job: it starts again as soon as Slurm has the nodes."""
    # Slurm ends the job's processes at once, and so may end the command before it returns.
    try:
        with contextlib.suppress(Killed):
            output_of("scontrol", "requeue", job)
    except ConfigError as error:
        say(f"stopped with a checkpoint, but not requeued ({error}); submit it again to resume")
    else:
        say(f"stopped with a checkpoint; job {job} is requeued and will resume")
