"""The rendezvous at which the ranks of a job find each other before Horovod starts.

The rendezvous is Horovod's key-value server over HTTP, on one address only: Horovod's own start
lets it listen on every interface of the machine. It has no secret: anyone who reaches it can read
and change where ranks connect to, so only the job's nodes should be able to reach it.
"""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Sequence
from typing import Any

_SCOPE = "trainyard"  # Horovod's own are global, local_* and cross_*


class Rendezvous:
    """A running server for ranks laid out over `hosts`, pairs of (name, number of ranks).

    `slots` has one entry per rank, node by node, as Horovod's own launcher makes them. It listens
    on `address` at a free port until `stop`. Raises OSError if this machine has no such address.
    """

    def __init__(self, address: str, hosts: Sequence[tuple[str, int]]) -> None:
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

        self.slots = slots_of(hosts)
        self._server = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
        self._server.init(self.slots)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def shared_environment(self) -> dict[str, str]:
        """Variables that every rank needs to find the others, besides its own slot."""
        address, port = self._server.server_address[:2]
        return {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": str(address),
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }

    def environment(self, rank: int) -> dict[str, str]:
        """The variables by which one rank finds the others."""
        return {**self.shared_environment, **slot_environment(self.slots[rank])}

    def stop(self) -> None:
        """Ends the server; running ranks no longer need it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def slots_of(hosts: Sequence[tuple[str, int]]) -> list[Any]:
    """Horovod's slots for `hosts`, pairs of (name, number of ranks): ranks count node by node."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments

    ranks = sum(count for _, count in hosts)
    slots: list[Any] = get_host_assignments([HostInfo(*host) for host in hosts], ranks)
    return slots


def slot_environment(slot: Any) -> dict[str, str]:
    """Variables that describe the rank in `slot` to itself."""
    from horovod.runner.gloo_run import create_slot_env_vars

    found: dict[str, str] = create_slot_env_vars(slot)
    return found


class HorovodStore:
    """The store of a Horovod launcher, `checkin.Store`."""

    def __init__(self, address: str, port: int) -> None:
        self._address, self._port = address, port

    @classmethod
    def of_launcher(cls) -> HorovodStore | None:
        """The store that this rank was told of; None without one, as under mpirun."""
        address = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
        port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT")
        return None if address is None or port is None else cls(address, int(port))

    def __str__(self) -> str:
        return f"{self._address}:{self._port}"

    def put(self, key: str, value: str) -> bool:
        """Stores `value`; raises `OSError` if the store cannot be reached."""
        self._ask("PUT", key, value.encode())
        return True

    def get(self, key: str) -> str | None:
        """The stored value; None if there is none."""
        return self._ask("GET", key, None)

    def _ask(self, method: str, key: str, body: bytes | None) -> str | None:
        connection = http.client.HTTPConnection(self._address, self._port, timeout=10)
        try:
            connection.request(method, f"/{_SCOPE}/{key}", body)
            answer = connection.getresponse()
            content = answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        return content if answer.status == 200 else None
