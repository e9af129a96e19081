"""Runs a command of the pipeline on every rank of a Slurm job, without ssh and without MPI.

    python -m launch.slurm [--launch.NAME=VALUE ...] train|evaluate|prepare [its options]

is the last line of a batch script (see slurm/), which hands it Slurm's signals by `exec`;
`--script NAME` prints one of those scripts. The ranks are started by srun and meet at a server on
the first node, those of Horovod (--launch.engine=horovod) like those of torch.distributed (torch).
It returns what the ranks returned: 0 finished, 2 wrong configuration or data, 75 stopped with a
good checkpoint, else 1.
SIGUSR1, sent before the time limit, ends in a checkpoint and a requeue of the job; SIGTERM
(scancel, preemption) in a checkpoint only.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from launch.end import exit_code, say
from launch.slurm.allocation import (
    Allocation,
    layout,
    one_per_node,
    one_per_node_environment,
    require_rank_per_gpu,
    this_allocation,
)
from launch.slurm.batch_scripts import OPTION, show
from launch.slurm.checks import examine, nccl_logging, watch_nccl
from launch.slurm.container import Container, container_of, srun
from launch.slurm.meeting import meeting
from launch.slurm.options import LaunchOptions, Program, require_engine, split
from launch.slurm.rank import ENGINE, INTERFACE, NODES, RUN_DIR
from launch.slurm.requeue import End
from pipeline.config import require
from pipeline.system.console import counted
from pipeline.system.failure import run_command


def main(argv: list[str]) -> int:
    """Checks, starts the ranks, waits for them and prints how they ended; returns the exit code."""
    relay = Relay()
    try:
        return _launch(argv, relay)
    finally:
        relay.ignore()


def _launch(argv: list[str], relay: Relay) -> int:
    options, program = split(argv)
    allocation = this_allocation(os.environ)
    say(
        f"job {allocation.job}"
        + (f", restart {allocation.restarts}" if allocation.restarts else "")
        + f": {counted(allocation.ranks, 'rank')} on "
        + ", ".join(f"{node.name} ({node.ranks})" for node in allocation.nodes)
    )
    require(
        shutil.which("srun") is not None,
        "srun is not here, as inside a container; start launch.slurm on the host, with "
        "--launch.container=IMAGE",
    )
    gpus = any(node.gpus for node in allocation.nodes) and not program.on_cpu
    container = container_of(options, program, gpus)
    env = environment(container)
    if not program.on_every_rank:
        once = srun(["--nodes=1", "--ntasks=1"], program.module_and_options, container, env)
        return exit_code(relay.run(once, env))
    if container is None:
        require_engine(options.engine)
    if not program.on_cpu:
        require_rank_per_gpu(allocation)
    end = End(program.run_dir, allocation, options.requeue)
    if options.doctor:
        examine(allocation, program, options, container)
    if options.stage is not None and relay.received is None:
        env = one_per_node_environment(env)
        stage = srun(one_per_node(allocation), program.staging(options.stage), container, env)
        code = relay.run(stage, env)
        if code and relay.received is None:
            return exit_code(code)  # its sentence is above
        program = program.reading_from(options.stage)
    if relay.received is not None:
        return end.early(relay.received)
    code = start_ranks(allocation, program, options, relay, container)
    return end.report(code, relay.received)


def start_ranks(
    allocation: Allocation,
    program: Program,
    options: LaunchOptions,
    relay: Relay,
    container: Container | None = None,
) -> int:
    """Runs the program on every rank of the job; returns srun's code."""
    env = environment(container)
    with meeting(allocation, options.engine, container, env) as shared:
        env |= {**shared, NODES: allocation.to_json(), ENGINE: options.engine}
        if options.interface is not None:
            env[INTERFACE] = options.interface
        if program.run_dir is not None:
            env[RUN_DIR] = str(program.run_dir)
            if any(node.gpus for node in allocation.nodes):
                env |= nccl_logging(program.run_dir, env)
                watch_nccl(program.run_dir, len(allocation.nodes))
        ranks = ["launch.slurm.rank", *program.module_and_options]
        return relay.run(srun(layout(allocation), ranks, container, env), env)


def environment(container: Container | None) -> dict[str, str]:
    """The environment of the job's tasks, in `container` if there is one."""
    return {**os.environ, **({} if container is None else container.environment)}


_RELAYED = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class Relay:
    """Passes signals on to the ranks, from its creation on."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._ranks: subprocess.Popen[bytes] | None = None
        for number in _RELAYED:
            signal.signal(number, self._pass_on)

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> int:
        """Runs srun to its end; returns its code."""
        # In a session of its own: a SIGTERM to the batch script's process group would reach srun,
        # which then kills its tasks instead of passing it on.
        self._ranks = subprocess.Popen(command, env=env, start_new_session=True)
        if self.received is not None:  # while it was being started
            self._pass_on(self.received, None)
        return self._ranks.wait()

    def ignore(self) -> None:
        """Ignores signals from now on: they must not change the code that the job has earned."""
        for number in _RELAYED:
            signal.signal(number, signal.SIG_IGN)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._ranks is None:
            return
        # srun kills its tasks on SIGTERM and SIGINT, and passes on other signals.
        # scancel from here does not work: it retries while the job ends, and then hits
        # the job's next start.
        self._ranks.send_signal(number if number == signal.SIGUSR1 else signal.SIGUSR2)


def _run(argv: list[str]) -> None:
    if argv[:1] == [OPTION]:
        show(argv[1:])
        return
    # run_command consumes --debug; the ranks should show tracebacks, too.
    code = main([*argv, "--debug"] if "--debug" in sys.argv else argv)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_command(_run, sys.argv[1:])
