"""Runs a command of the pipeline on every rank of a Slurm job, without ssh and without MPI.

    python -m launch.slurm [--launch.NAME=VALUE ...] train|evaluate|prepare [its options]

as the last line of a batch script (see slurm/), which hands it Slurm's signals by `exec`. The
ranks are started by srun and meet at a server on the first node. It ends with what the ranks
returned: 0 finished, 2 wrong configuration or data, 75 stopped with a good checkpoint, else 1.
SIGUSR1, sent before the time limit, ends in a checkpoint and a requeue of the job; SIGTERM
(scancel, preemption) in a checkpoint only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from launch.allocation import Allocation, output_of, require_rank_per_gpu, this_allocation
from launch.rendezvous import Rendezvous
from launch.slurm_checks import examine, nccl_logging, watch_nccl
from launch.slurm_options import LaunchOptions, split
from launch.slurm_rank import INTERFACE, NODES, RUN_DIR
from launch.srun import layout, one_per_node, srun
from pipeline.config import ConfigError
from pipeline.failure import ExitCode, run_command, say_error


def main(argv: list[str]) -> int:
    """Checks, starts the ranks, waits for them and says how it ended; the exit code."""
    relay = Relay()
    options, program = split(argv)
    allocation = this_allocation(os.environ)
    _say(
        f"job {allocation.job}"
        + (f", restart {allocation.restarts}" if allocation.restarts else "")
        + f": {allocation.ranks} ranks on "
        + ", ".join(f"{node.name} ({node.ranks})" for node in allocation.nodes)
    )
    if not program.on_every_rank:
        return relay.run(srun(["--nodes=1", "--ntasks=1"], program.command), os.environ)
    if not program.on_cpu:
        require_rank_per_gpu(allocation)
    if options.doctor:
        examine(allocation, program, sys.executable)
    if options.stage is not None:
        code = relay.run(srun(one_per_node(allocation), program.staging(options.stage)), os.environ)
        if code:
            return code  # its sentence stands above
        program = program.reading_from(options.stage)
    end = End(program.run_dir)
    if relay.received is not None:
        return end.early(relay.received, allocation, options)
    with _rendezvous(allocation) as server:
        env = {**os.environ, **server.environment, NODES: allocation.to_json()}
        if options.interface is not None:
            env[INTERFACE] = options.interface
        if program.run_dir is not None:
            env[RUN_DIR] = str(program.run_dir)
        if program.run_dir is not None and any(node.gpus for node in allocation.nodes):
            env |= nccl_logging(program.run_dir, env)
            watch_nccl(program.run_dir, len(allocation.nodes))
        ranks = [sys.executable, "-m", "launch.slurm_rank", *program.module_and_options]
        code = relay.run(srun(layout(allocation), ranks), env)
    return end.told(code, allocation, options)


@contextlib.contextmanager
def _rendezvous(allocation: Allocation) -> Iterator[Rendezvous]:
    first = allocation.nodes[0]
    try:
        server = Rendezvous(first.address, allocation.hosts)
    except OSError as error:
        raise ConfigError(
            f"the ranks cannot meet at {first.address}, the address of {first.name}: "
            f"{error.strerror}; this must run on the job's first node, as a batch script does"
        ) from error
    try:
        yield server
    finally:
        server.stop()


class Relay:
    """Passes the signals that this process gets on to the ranks, from its making on."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._ranks: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> int:
        """Runs srun to its end; what it returns."""
        # In a session of its own: a SIGTERM to the batch script's process group would reach srun,
        # which then kills its tasks instead of telling them.
        self._ranks = subprocess.Popen(command, env=env, start_new_session=True)
        return self._ranks.wait()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._ranks is None:
            return
        # srun takes SIGTERM and SIGINT as the order to kill its tasks, and passes on the others.
        # scancel from here is no way: it tries again and again while the job ends, and then hits
        # the job's next start.
        self._ranks.send_signal(number if number == signal.SIGUSR1 else signal.SIGUSR2)


class End:
    """How the ranks ended, told by the files they leave in the run's folder."""

    def __init__(self, run_dir: Path | None) -> None:
        self._run_dir = run_dir
        self._before = {name: self._read(name) for name in ("failure.txt", "stopped.txt")}

    def _read(self, name: str) -> tuple[int, str] | None:
        """When the file was written and what it says, if it is there."""
        if self._run_dir is None:
            return None
        path = self._run_dir / name
        try:
            return path.stat().st_mtime_ns, path.read_text(encoding="utf-8")
        except OSError:
            return None

    def _new(self, name: str) -> str | None:
        now = self._read(name)
        return now[1] if now is not None and now != self._before[name] else None

    def early(
        self, received: signal.Signals, allocation: Allocation, options: LaunchOptions
    ) -> int:
        """What to do about a signal that came before the ranks were started; the exit code."""
        if received is signal.SIGUSR1 and options.requeue:
            requeue(allocation.job)
        _say(f"{received.name} came before the ranks were started")
        return ExitCode.STOPPED

    def told(self, code: int, allocation: Allocation, options: LaunchOptions) -> int:
        """Says how it ended on the last lines of the log, and has the job requeued when its time
        was up. Returns the exit code."""
        if code == 0:
            return ExitCode.FINISHED
        stopped, failure = self._new("stopped.txt"), self._new("failure.txt")
        if failure is not None:
            print(failure, file=sys.stderr, flush=True, end="")
            return ExitCode.WRONG_INPUT if code == ExitCode.WRONG_INPUT else ExitCode.FAILED
        if stopped is not None:
            if stopped.startswith("SIGUSR1") and options.requeue:
                requeue(allocation.job)
            else:
                _say("stopped with a checkpoint; start it again to go on, unless Slurm does")
            return ExitCode.STOPPED
        if code == ExitCode.WRONG_INPUT:
            return code  # the sentence stands above: no rank got as far as the run's folder
        say_error(
            f"srun ended with code {code} and no rank could say why: killed by a signal, for lack "
            f"of memory or with its node; see sacct -j {allocation.job} and the lines above"
        )
        return ExitCode.FAILED


def requeue(job: str) -> None:
    """Puts the job back into the queue: it starts again as soon as Slurm has the nodes."""
    try:
        output_of("scontrol", "requeue", job)
    except ConfigError as error:
        _say(f"stopped with a checkpoint, but not requeued ({error}); submit it again to go on")
    else:
        _say(f"stopped with a checkpoint; job {job} is requeued and will go on")


def _say(line: str) -> None:
    print(f"launch: {line}", flush=True)


def _run(argv: list[str]) -> None:
    code = main(argv)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_command(_run, sys.argv[1:])
