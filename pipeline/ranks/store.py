"""The store at which the ranks of a job find each other before torch.distributed starts."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from pipeline.ranks.addresses import address_trouble
from pipeline.ranks.checkin import Start, check_in, start_timeout_sec
from pipeline.system.failure import TrainingError
from pipeline.system.launched import Launched, torch_variables

_SCOPE = "trainyard"
_PATIENCE = datetime.timedelta(seconds=10)  # for one answer


class TorchRendezvous:
    """A running store for ranks laid out over `hosts`, pairs of (name, number of ranks).

    It listens on `address` only, at a free port, until `stop`. Raises OSError if this machine has
    no such address.
    """

    def __init__(self, address: str, hosts: Sequence[tuple[str, int]]) -> None:
        with socket.create_server((address, 0)) as listening:  # by itself it takes every interface
            self._server = TCPStore(
                address, listening.getsockname()[1], is_master=True, wait_for_workers=False,
                timeout=_PATIENCE, master_listen_fd=listening.detach(),
            )  # fmt: skip
        self._address = address
        self._ranks_by_node = [count for _, count in hosts]

    @property
    def shared_environment(self) -> dict[str, str]:
        """Variables that every rank needs to find the others, besides who it is."""
        return {
            "MASTER_ADDR": self._address,
            "MASTER_PORT": str(self._server.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is not rank 0's to open
        }

    def environment(self, rank: int) -> dict[str, str]:
        """The variables of one rank, as torchrun names them: ranks count node by node."""
        return {**self.shared_environment, **torch_variables(rank, self._ranks_by_node)}

    def stop(self) -> None:
        """Ends the store, with which running ranks lose their engine's."""
        del self._server


class TorchStore:
    """A `checkin.Store` in torch's."""

    def __init__(self, store: TCPStore) -> None:
        self._where = f"{store.host}:{store.port}"
        self._store = PrefixStore(_SCOPE, store)

    def __str__(self) -> str:
        return self._where

    def put(self, key: str, value: str) -> bool:
        """Stores `value`."""
        try:
            self._store.set(key, value)
        except DistError as error:
            raise OSError(_reason(error)) from error
        return True

    def get(self, key: str) -> str | None:
        """The stored value; None if there is none."""
        try:
            if not self._store.check([key]):
                return None
            found: bytes = self._store.get(key)
        except DistError as error:
            raise OSError(_reason(error)) from error
        return found.decode()


def backends_built() -> dict[str, bool]:
    """What this PyTorch's torch.distributed can communicate over."""
    return {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}


@dataclass(frozen=True)
class Met:
    """What the ranks have once all are there: this start of the job, the store for its process
    groups, and what opens a second way to the store, as each serves one thread."""

    start: Start
    groups: Any
    second: Callable[[], TorchStore]


def meet(started: Launched) -> Met:
    """Collective. Returns once all ranks are there; raises as `check_in`, and `TrainingError` for a
    store that cannot be reached."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    launcher_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    patience = datetime.timedelta(seconds=start_timeout_sec("torch"))
    store = _open(address, port, started.rank == 0 and not launcher_has_it, patience)
    trouble = address_trouble("torch", started.local_size < started.size)
    start = check_in(TorchStore(store), started.rank, started.size, "torch", trouble)

    def second() -> TorchStore:
        return TorchStore(_open(address, port, False, _PATIENCE))

    return Met(start, PrefixStore(start.name, store), second)


def _open(address: str, port: int, is_master: bool, patience: datetime.timedelta) -> TCPStore:
    try:
        return TCPStore(address, port, None, is_master, patience, wait_for_workers=False)
    except DistError as error:
        raise TrainingError(
            f"the store of the job at {address}:{port} cannot be reached ({_reason(error)}); see "
            "that rank 0 and the launcher run, and that MASTER_ADDR and MASTER_PORT are open to "
            "this host"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
