"""A rank's share of its machine: cores, a GPU, threads, memory.

Every rank reports its `Place`; from all of them follows the `Share` of each, which decides its
device and its threads.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import torch

from pipeline.config import Config
from pipeline.ranks.world import World
from pipeline.system.gpus import gpus_kept_out, no_gpu_here, unusable_gpus, usable_count
from pipeline.system.memory import keep_freed_memory


@dataclass(frozen=True)
class Place:
    """Where a rank runs, as it sees it."""

    host: str
    cores: tuple[int, ...]
    """Numbers of the cores this process may run on."""
    gpus: tuple[str, ...]
    """UUIDs of the GPUs it can use, by CUDA's index."""


@dataclass(frozen=True)
class Share:
    """The part of its machine that a rank has to itself."""

    cores: int
    """Number of cores, at least 1."""
    gpu: int
    """CUDA's index of its GPU; beyond the last one if there are fewer GPUs than ranks."""


def own_share(world: World) -> Share:
    """Collective. Returns this rank's cores and GPU."""
    gpus = (torch.cuda.get_device_properties(i) for i in range(usable_count()))
    place = Place(
        socket.gethostname(),
        tuple(sorted(os.sched_getaffinity(0))),
        tuple(str(properties.uuid) for properties in gpus),
    )
    return share_of([Place(*one) for one in world.gather_objects(astuple(place))], world.rank)


def share_of(places: Sequence[Place], rank: int) -> Share:
    """The share of `rank`, from where every rank runs.

    Some launchers show every rank of a node all its cores and GPUs (horovodrun, Slurm's
    --gpus-per-node), others each rank its own (--cpus-per-task, --gpus-per-task). Ranks that see
    exactly the same ones divide them in the order of their ranks.
    """
    mine = places[rank]
    on_same_cores = sum((p.host, p.cores) == (mine.host, mine.cores) for p in places)
    on_same_gpus = [r for r, p in enumerate(places) if p.gpus == mine.gpus and p.host == mine.host]
    return Share(max(1, len(mine.cores) // on_same_cores), on_same_gpus.index(rank))


def take_share(config: Config, share: Share) -> torch.device:
    """Makes this process one that computes on its share alone, and returns its device.

    CPU results have the same bits at the same count of threads only. Raises as `choose_device`.
    """
    torch.set_num_threads(config.run.threads or share.cores)
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    device = choose_device(config.run.device, share.gpu)
    if device.type == "cpu":
        keep_freed_memory()  # one step's activations are the next one's
    return device


def choose_device(choice: Literal["auto", "cpu", "cuda"], gpu: int) -> torch.device:
    """This rank's device, `gpu` being CUDA's index of its GPU if it has one.

    "auto" is a CPU only where the driver lists no GPU, or all of them are hidden from CUDA: a GPU
    that PyTorch cannot use is not passed over in silence, nor those that a container hides. Raises
    `ValueError` if there is no such GPU.
    """
    if choice == "cpu":
        return torch.device("cpu")
    count = usable_count()
    trouble = None if count else unusable_gpus()
    if trouble is not None:
        raise ValueError(
            f"run.device={choice} on {socket.gethostname()}: {trouble.found}; {trouble.cure}"
        )
    if choice == "auto" and count == 0:
        cure = gpus_kept_out()
        if cure is not None:
            raise ValueError(
                f"Slurm gave this job GPUs on {socket.gethostname()}, and the container shows none "
                f"of them; start it with {cure}, or set run.device=cpu"
            )
        return torch.device("cpu")
    if count == 0:
        raise ValueError(f"run.device=cuda, but {no_gpu_here()}; set run.device=auto or cpu")
    if gpu >= count:
        raise ValueError(
            f"{gpu + 1} or more ranks share {count} GPUs on {socket.gethostname()}; start one rank "
            "for each GPU, or set run.device=cpu"
        )
    device = torch.device("cuda", gpu)
    torch.cuda.set_device(device)
    return device
