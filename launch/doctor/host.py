"""The operating system of a node: shared memory, cores and limits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from launch.doctor.check import Facts, Finding, Job, Rules, size
from launch.doctor.storage import space
from pipeline.system.machine import available_cores

_GIB = 1 << 30
_FEWEST_OPEN_FILES = 1024


def host_facts() -> Facts:
    """Shared memory, cores and limits; sizes in bytes, None for unlimited."""
    return {
        "shm": space(Path("/dev/shm")),
        "limits": {
            "open_files": _limit(resource.RLIMIT_NOFILE),
            "locked_bytes": _limit(resource.RLIMIT_MEMLOCK),
        },
        "cores": os.cpu_count(),
        "usable_cores": available_cores(),
    }


def _limit(which: int) -> int | None:
    """The soft limit, None for unlimited."""
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def shared_memory(job: Job) -> Iterator[Finding]:
    """Checks that /dev/shm is large enough for NCCL between the ranks of one node."""
    absent = job.where(lambda n: "not there" if n["shm"]["free_bytes"] is None else None)
    yield Finding("warn", absent, "Mount a tmpfs on /dev/shm.")
    small = job.where(
        lambda n: f"{size(n['shm']['free_bytes'])} of {size(n['shm']['total_bytes'])} free",
        when=lambda n: n["shm"]["free_bytes"] < _GIB,
    )
    fix = "Start the container with --shm-size=8g or --ipc=host, and delete what fills it."
    yield Finding("warn", small, fix)
    yield Finding("ok", f"{size(min(n['shm']['free_bytes'] for n in job.nodes))} free")


def cores(job: Job) -> Iterator[Finding]:
    """Checks that every rank has at least one core of its own."""
    starved = job.where(
        lambda n: f"{job.ranks_on(n)} ranks may use {n['usable_cores']} of {n['cores']} cores",
        when=lambda n: (job.ranks_on(n) or 1) > n["usable_cores"],
    )
    yield Finding("warn", starved, "Ask for more with --cpus-per-task.")
    yield Finding("ok", job.odd_ones(lambda n: n["usable_cores"]))
    yield Finding("ok", f"{job.first['usable_cores']} of {job.first['cores']} to use")


def limits(job: Job) -> Iterator[Finding]:
    """Checks for enough open files to connect to every rank, and unlimited memory for RDMA."""
    needed = max(_FEWEST_OPEN_FILES, 4 * sum((job.ranks or {}).values()))
    short = job.where(
        lambda n: f"{n['limits']['open_files']} open files",
        when=lambda n: n["limits"]["open_files"] is not None and n["limits"]["open_files"] < needed,
    )
    yield Finding("warn", short, f"Raise the limit with ulimit -n {needed} in the job's script.")
    if job.several_nodes:
        pinned = job.where(
            lambda n: f"{size(n['limits']['locked_bytes'])} of locked memory with InfiniBand",
            when=lambda n: n["infiniband"] and n["limits"]["locked_bytes"] is not None,
        )
        fix = "Set LimitMEMLOCK=infinity for slurmd, or NCCL may fall back from InfiniBand."
        yield Finding("warn", pinned, fix)
    files = job.first["limits"]["open_files"]
    yield Finding("ok", f"{'unlimited' if files is None else files} open files")


HOST_CHECKS: Rules = {"/dev/shm": shared_memory, "cores": cores, "limits": limits}
