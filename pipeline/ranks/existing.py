"""The rank that a process has already, whoever made it one: what a part of this program needs that
runs inside of another program."""

from __future__ import annotations

import contextlib
import dataclasses
import os

import torch
import torch.distributed as dist

from pipeline.ranks.places import Share
from pipeline.system.gpus import usable_count
from pipeline.system.launched import Launched, launched
from pipeline.system.machine import available_cores


def existing_rank() -> Launched:
    """This process's rank: in torch.distributed if that has been initialised, else as its launcher
    says, else alone. Raises `ValueError` where two launchers have started it."""
    return initialised_rank() or launched()


def initialised_rank() -> Launched | None:
    """This process's rank in torch.distributed; None if that has not been initialised."""
    if dist.is_available() and dist.is_initialized():
        return told_rank(dist.get_rank(), dist.get_world_size())
    return None


def told_rank(rank: int, size: int) -> Launched:
    """Rank `rank` of `size`, with its place on this machine: as the launcher says it, if that has
    started as many, else as the ranks of one machine, or of several with as many as GPUs."""
    with contextlib.suppress(ValueError):  # two launchers, neither of which need be right
        started = launched()
        if started.size == size:
            return dataclasses.replace(started, rank=rank)
    local_size = min(size, usable_count() or size)
    return Launched(None, rank, size, rank % local_size, local_size)


def share_of_own(rank: Launched) -> Share:
    """The part of this machine that `rank` has, from what it sees alone; nothing is asked of other
    ranks.

    A process that may run on all cores has been given none of its own, and shares them with the
    other ranks of the machine. Of several GPUs it has the one of its local rank, and as the only
    rank here PyTorch's current one.
    """
    cores = available_cores()
    if cores == os.cpu_count():
        cores = max(1, cores // rank.local_size)
    gpus = usable_count()
    if gpus <= 1:
        return Share(cores, 0)
    return Share(cores, rank.local_rank if rank.local_size > 1 else torch.cuda.current_device())
