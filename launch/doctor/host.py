"""The system of a node: shared memory, cores and limits."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from launch.doctor.check import Check, Facts, Job, size
from launch.doctor.storage import space
from pipeline.system.machine import available_cores

_GIB = 1 << 30
_FEWEST_OPEN_FILES = 1024


def host_facts() -> Facts:
    """Sizes in bytes, None for unlimited."""
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


def shared_memory(job: Job) -> Check | None:
    """/dev/shm is large enough for NCCL and the ranks of one node to talk."""
    free = [node["shm"]["free_bytes"] for node in job.nodes]
    if any(room is None for room in free):
        found = job.where(lambda n: "not there" if n["shm"]["free_bytes"] is None else None)
        return Check("/dev/shm", "warn", found, "Mount a tmpfs on /dev/shm.")
    if min(free) < _GIB:
        found = job.where(
            lambda n: (
                f"{size(n['shm']['free_bytes'])} of {size(n['shm']['total_bytes'])} free"
                if n["shm"]["free_bytes"] < _GIB
                else None
            )
        )
        cure = "Start the container with --shm-size=8g or --ipc=host, and delete what fills it."
        return Check("/dev/shm", "warn", found, cure)
    return Check("/dev/shm", "ok", f"{size(min(free))} free")


def cores(job: Job) -> Check:
    """Every rank has at least a core of its own."""
    starved = job.where(
        lambda n: (
            f"{job.ranks_on(n)} ranks may use {n['usable_cores']} of {n['cores']} cores"
            if (job.ranks_on(n) or 1) > n["usable_cores"]
            else None
        )
    )
    if starved:
        return Check("cores", "warn", starved, "Ask for more with --cpus-per-task.")
    node = job.nodes[0]
    odd = job.odd_ones(lambda n: n["usable_cores"])
    return Check("cores", "ok", odd or f"{node['usable_cores']} of {node['cores']} to use")


def limits(job: Job) -> Check:
    """Enough open files for a connection to every rank; no limit on memory for RDMA."""
    total = sum((job.ranks or {}).values())
    needed = max(_FEWEST_OPEN_FILES, 4 * total)
    short = job.where(
        lambda n: (
            f"{n['limits']['open_files']} open files"
            if n["limits"]["open_files"] is not None and n["limits"]["open_files"] < needed
            else None
        )
    )
    if short:
        cure = f"Raise the limit with ulimit -n {needed} in the job's script."
        return Check("limits", "warn", short, cure)
    pinned = job.where(
        lambda n: (
            f"{size(n['limits']['locked_bytes'])} of locked memory with InfiniBand"
            if n["infiniband"] and n["limits"]["locked_bytes"] is not None
            else None
        )
    )
    if pinned and job.several_nodes:
        cure = "Set LimitMEMLOCK=infinity for slurmd, or NCCL may fall back from InfiniBand."
        return Check("limits", "warn", pinned, cure)
    files = job.nodes[0]["limits"]["open_files"]
    return Check("limits", "ok", f"{'unlimited' if files is None else files} open files")


HOST_CHECKS = (shared_memory, cores, limits)
