"""How a Slurm job ended: its last messages, its exit code, and whether it is requeued."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from launch import end
from launch.end import exit_code, say
from launch.slurm.allocation import Allocation, Killed, NotHere, output_of
from pipeline.config import ConfigError
from pipeline.system.failure import ExitCode, say_error
from pipeline.train.folder import Checkpoints


class End(end.End):
    """The end of a Slurm job. `requeue` allows requeueing it."""

    def __init__(self, run_dir: Path | None, allocation: Allocation, requeue: bool) -> None:
        super().__init__(run_dir)
        self._job = allocation.job
        self._restarts, self._may_requeue = allocation.restarts, requeue
        self._step_before = self._newest_step()

    def without_record(self, code: int, received: signal.Signals | None) -> int:
        """As `launch.end.End`; `code` is srun's."""
        if received is not None:  # it reached ranks that did not listen yet
            return self.early(received)
        if code == ExitCode.WRONG_INPUT or self.run is None:
            say(f"srun ended with code {code}; the cause is above")
            return exit_code(code)
        say_error(
            f"srun ended with code {code} and the ranks left no cause in {self.run.path}; see the "
            f"lines above, and sacct -j {self._job} for a signal, exhausted memory or a lost node"
        )
        return ExitCode.FAILED

    def early(self, received: signal.Signals) -> int:
        """As `launch.end.End`. An evaluation keeps nothing, so that another start of the same
        length would end as this one."""
        if self.run is not None:
            return super().early(received)
        say(f"stopped by {received.name}; submit it again, with more --time if that has run out")
        return ExitCode.STOPPED

    def stopped(self, by: str, saved: bool = True) -> int:
        """As `launch.end.End`; requeues the job after SIGUSR1."""
        if by != "SIGUSR1" or not self._may_requeue:
            say(f"stopped; {end.again(saved)}, unless Slurm does")
        elif self._newest_step() > self._step_before or self._restarts == 0:
            requeue(self._job, saved)
        else:
            # Otherwise a limit too short for a start would keep nodes busy for ever.
            say(
                "stopped, and not requeued, since this start did not make a step; give the job "
                "more --time than its start and the warning (--signal) take"
            )
        return ExitCode.STOPPED

    def _newest_step(self) -> int:
        """Step of the newest checkpoint, by its name; -1 without any."""
        steps = [] if self.run is None else Checkpoints(self.run.checkpoints).steps()
        return max(steps, default=-1)


def requeue(job: str, saved: bool) -> None:
    """Requeues the job, which has `saved` or not: it starts again as soon as Slurm has the
    nodes."""
    stopped = "stopped with a checkpoint" if saved else "stopped before the first step"
    then = "resume" if saved else "start again"
    # Slurm ends the job's processes at once, and so may end the command before it returns.
    try:
        with contextlib.suppress(Killed):
            output_of("scontrol", "requeue", job)
    except NotHere:
        say(
            f"{stopped}, but not requeued: there is no scontrol here, as inside a container; run "
            f"scontrol requeue {job} on the cluster, or submit it again to {then}"
        )
    except ConfigError as error:
        say(f"{stopped}, but not requeued ({error}); submit it again to {then}")
    else:
        say(f"{stopped}; job {job} is requeued and will {then}")
