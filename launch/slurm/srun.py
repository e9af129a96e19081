"""How srun is to lay out the tasks of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.slurm.allocation import Allocation


def layout(allocation: Allocation) -> list[str]:
    """srun's options for one task per rank, node by node, all ended when one fails.

    The ranks bind themselves to cores (launch/slurm/binding.py), since only they know their GPU.
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
    """srun's options for one task on each node, with all the cores and GPUs the job has there."""
    count = len(allocation.nodes)
    options = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--cpu-bind=none"]
    gpus = sum(node.gpus for node in allocation.nodes)
    return [*options, f"--gpus={gpus}"] if gpus else options


def one_per_node_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` without what would lay out such a step otherwise: submitted for the ranks, sbatch
    hands these options on to every srun."""
    others = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_NTASKS_PER_GPU")
    return {name: value for name, value in env.items() if name not in others}


def srun(options: Sequence[str], command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as tasks of this job.

    They get this process's whole environment, also in a job submitted with --export=NONE.
    """
    return ["srun", "--mpi=none", "--export=ALL", *options, *command]
