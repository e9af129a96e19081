"""What started this process, and as which rank of how many: read from the environment, before
Horovod or torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Engine = Literal["horovod", "torch"]
"""What ranks communicate over: Horovod, or torch.distributed."""

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables that torch.distributed's launchers set on every rank, all of them."""

_RANKS: dict[Engine, tuple[str, ...]] = {
    "torch": (*_TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "horovod": tuple(
        prefix + name
        for prefix in ("HOROVOD_", "OMPI_COMM_WORLD_")
        for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    ),
}
"""The variables by which each engine's launchers tell a process which rank it is."""


@dataclass(frozen=True)
class Launched:
    """A rank as its launcher started it. `engine` None: one process alone, without a launcher."""

    engine: Engine | None = None
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched(env: Mapping[str, str] = os.environ) -> Launched:
    """How this process was started. Raises `ValueError` where two launchers have started it."""
    of_horovod = "HOROVOD_RANK" in env or "OMPI_COMM_WORLD_RANK" in env
    of_torch = all(name in env for name in _TORCHRUN)
    if of_horovod and of_torch:
        raise ValueError(
            "this rank has the variables of two launchers, HOROVOD_RANK (horovodrun) and RANK "
            "(torchrun); start the ranks by one of them, without the other's variables in the "
            "environment"
        )
    if of_torch:
        rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
        local = int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", size))
        return Launched("torch", rank, size, *local)
    if of_horovod:
        prefix = "HOROVOD_" if "HOROVOD_RANK" in env else "OMPI_COMM_WORLD_"
        numbers = (env.get(prefix + name) for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
        rank, size, local_rank, local_size = (
            default if number is None else int(number)
            for number, default in zip(numbers, (0, 1, 0, 1), strict=True)
        )
        return Launched("horovod", rank, size, local_rank, local_size)
    return Launched()


def torch_variables(rank: int, ranks_by_node: Sequence[int]) -> dict[str, str]:
    """The variables that tell one rank of torch.distributed who it is: ranks count node by node."""
    places = [(local, count) for count in ranks_by_node for local in range(count)]
    local_rank, local_size = places[rank]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(places)),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
    }


def without_ranks(env: Mapping[str, str], *engines: Engine) -> dict[str, str]:
    """`env` without the variables that make a process a rank of these engines, as a scheduler or an
    image may have set them."""
    names = {name for engine in engines for name in _RANKS[engine]}
    return {name: value for name, value in env.items() if name not in names}


def launched_rank() -> int:
    """This process's rank as its launcher gave it; 0 if alone."""
    return _one_launcher().rank


def launched_size() -> int:
    """The number of ranks as the launcher gave it; 1 if alone."""
    return _one_launcher().size


def _one_launcher() -> Launched:
    """`launched`; of two launchers the first. Asked while an error is being reported."""
    env = dict(os.environ)
    if "HOROVOD_RANK" in env or "OMPI_COMM_WORLD_RANK" in env:
        env.pop("RANK", None)
    return launched(env)
