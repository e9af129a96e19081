"""Where the ranks of a job find each other: Horovod's key-value server, on one address only.

Horovod's own start lets it listen on every interface of the machine. It has no secret: whoever
reaches it can read and change where ranks connect to, so that it should be seen by the job's nodes
and nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any


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
    def environment(self) -> dict[str, str]:
        """What every rank needs to find the others, besides its own slot."""
        address, port = self._server.server_address[:2]
        return {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": str(address),
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }

    def stop(self) -> None:
        """Ends the server; ranks that run already do not need it any more."""
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
    """What the rank in `slot` needs to know about itself."""
    from horovod.runner.gloo_run import create_slot_env_vars

    found: dict[str, str] = create_slot_env_vars(slot)
    return found
