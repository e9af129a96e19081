"""The store at which the ranks of a job find each other before torch.distributed starts."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from pipeline.ranks.checkin import check_in, start_timeout_sec
from pipeline.system.failure import TrainingError
from pipeline.system.launched import Launched

_SCOPE = "trainyard"
_PATIENCE = datetime.timedelta(seconds=10)  # for one answer


class TorchRendezvous:
    """A running store for ranks laid out over `hosts`, pairs of (name, number of ranks).

    It listens at a free port of this machine until `stop`; `address` is how ranks reach it.
    """

    def __init__(self, address: str, hosts: Sequence[tuple[str, int]]) -> None:
        self._server = TCPStore(
            address, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE
        )
        self._address = address
        self._slots = [(local, count) for _, count in hosts for local in range(count)]

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
        local_rank, local_size = self._slots[rank]
        return {
            **self.shared_environment,
            "RANK": str(rank),
            "WORLD_SIZE": str(len(self._slots)),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(local_size),
        }

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


def meet(started: Launched) -> Any:
    """Collective. The store for the process groups of this start of the job, once all ranks are
    there; raises as `check_in`, and `TrainingError` for a store that cannot be reached."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    launcher_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            address, port, is_master=started.rank == 0 and not launcher_has_it,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=start_timeout_sec("torch")),
        )  # fmt: skip
    except DistError as error:
        raise TrainingError(
            f"the store of the job at {address}:{port} cannot be reached ({_reason(error)}); see "
            "that rank 0 and the launcher run, and that MASTER_ADDR and MASTER_PORT are open to "
            "this host"
        ) from error
    return PrefixStore(check_in(TorchStore(store), started.rank, started.size, "torch"), store)


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
