"""How a job under Slurm ended: its last words, its exit code, and whether it is requeued."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

from launch.slurm import say
from launch.slurm.allocation import Allocation, output_of
from pipeline.config import ConfigError
from pipeline.system.failure import ExitCode, first_cause, say_error

# A network file system may go on denying a file that another node has written.
_PATIENCE_SEC = 5.0
_FILES = ("failure.txt", "stopped.txt")


def exit_code(code: int) -> int:
    """What srun returned, as one of the pipeline's exit codes."""
    return code if code in (ExitCode.FINISHED, ExitCode.WRONG_INPUT) else ExitCode.FAILED


class End:
    """Tells the end of a job by the files that its ranks leave in the run's folder, if it has one.

    Made before the ranks start, so that what lay there before is known. `requeue` allows to put
    the job back into the queue.
    """

    def __init__(self, run_dir: Path | None, allocation: Allocation, requeue: bool) -> None:
        self._run_dir, self._job = run_dir, allocation.job
        self._restarts, self._may_requeue = allocation.restarts, requeue
        self._before = {name: self._read(name) for name in _FILES}
        self._step_before = self._newest_step()

    def told(self, code: int, received: signal.Signals | None) -> int:
        """Says how the ranks ended, on the last lines of the log; the exit code.

        `code` is what srun returned, `received` the signal that the launcher got, if any.
        """
        if code == 0:
            return ExitCode.FINISHED
        found = self._wait_for_files() if self._run_dir is not None else {}
        if "failure.txt" in found and self._run_dir is not None:
            if found["failure.txt"]:
                print(found["failure.txt"], file=sys.stderr, flush=True, end="")
            else:
                say_error(first_cause(self._run_dir) or "")
            return exit_code(code)
        if "stopped.txt" in found:  # a full disk has room for its name only
            by = found["stopped.txt"].split(" ")[0]
            return self._stopped(by or (received.name if received is not None else ""))
        if received is not None:  # it reached ranks that could not listen yet
            return self.early(received)
        if code == ExitCode.WRONG_INPUT or self._run_dir is None:
            say(f"srun ended with code {code}; the cause stands above")
            return exit_code(code)
        say_error(
            f"srun ended with code {code} and the ranks left no cause in {self._run_dir}; see the "
            f"lines above, and sacct -j {self._job} for a signal, lack of memory or a lost node"
        )
        return ExitCode.FAILED

    def early(self, received: signal.Signals) -> int:
        """What to do about a signal that came before the ranks were under way; the exit code."""
        say(f"{received.name} came before the first step")
        return self._stopped(received.name)

    def _stopped(self, by: str) -> int:
        if by != "SIGUSR1" or not self._may_requeue:
            say("stopped; start it again to go on from its checkpoint, unless Slurm does")
        elif self._newest_step() > self._step_before or self._restarts == 0:
            requeue(self._job)
        else:
            # Else a limit that is too short for a start would keep nodes busy for ever.
            say(
                "stopped, and not requeued, since this start did not make a step; give the job "
                "more --time than its start and the warning (--signal) take"
            )
        return ExitCode.STOPPED

    def _newest_step(self) -> int:
        """Step of the newest checkpoint, by its name; -1 without any."""
        names = self._run_dir.glob("checkpoints/step-*.pt") if self._run_dir else ()
        found = (re.fullmatch(r"step-(\d+)\.pt", path.name) for path in names)
        return max((int(match[1]) for match in found if match), default=-1)

    def _wait_for_files(self) -> dict[str, str]:
        """What the ranks have written, by name; waits a moment for the first of them."""
        end = time.monotonic() + _PATIENCE_SEC
        while True:
            if self._run_dir is not None and self._run_dir.is_dir():
                os.listdir(self._run_dir)  # makes NFS look again
            now = {name: self._read(name) for name in _FILES}
            new = {k: v[1] for k, v in now.items() if v is not None and v != self._before[k]}
            if new or time.monotonic() > end:
                return new
            time.sleep(0.5)

    def _read(self, name: str) -> tuple[int, str] | None:
        """When the file was written and what it says, if it is there."""
        if self._run_dir is None:
            return None
        path = self._run_dir / name
        try:
            return path.stat().st_mtime_ns, path.read_text(encoding="utf-8")
        except OSError:
            return None


def requeue(job: str) -> None:
    """Puts the job back into the queue: it starts again as soon as Slurm has the nodes."""
    try:
        output_of("scontrol", "requeue", job)
    except ConfigError as error:
        say(f"stopped with a checkpoint, but not requeued ({error}); submit it again to go on")
    else:
        say(f"stopped with a checkpoint; job {job} is requeued and will go on")
