"""How srun is to lay out the tasks of a job."""

from __future__ import annotations

from collections.abc import Sequence

from launch.allocation import Allocation


def layout(allocation: Allocation) -> list[str]:
    """srun's options for one task per rank, node by node, all ended when one fails.

    The ranks bind themselves to cores (launch/binding.py), since only they know their GPU.
    """
    options = [
        f"--nodes={len(allocation.nodes)}",
        f"--ntasks={allocation.ranks}",
        "--distribution=block",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
    ]
    if allocation.cpus_per_task is not None:
        options.append(f"--cpus-per-task={allocation.cpus_per_task}")
    return options


def one_per_node(allocation: Allocation) -> list[str]:
    """srun's options for one task on each node, with all the cores the job has there."""
    count = len(allocation.nodes)
    return [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--cpu-bind=none"]


def srun(options: Sequence[str], command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as tasks of this job."""
    return ["srun", "--mpi=none", *options, *command]
