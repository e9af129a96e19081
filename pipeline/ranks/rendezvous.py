"""The rendezvous at which the ranks of a job find each other before Horovod starts.

The rendezvous is Horovod's key-value server over HTTP, on one address only: Horovod's own start
lets it listen on every interface of the machine. It has no secret: anyone who reaches it can read
and change where ranks connect to, so only the job's nodes should be able to reach it.

When a rank never comes, Horovod 0.28.1 aborts the others after 30 s without saying who is missing.
So each rank first puts its name there. Rank 0 looks for the others and they for its answer, so that
n ranks ask n times, not n squared.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipeline.ranks.heartbeat import Peer
from pipeline.system.failure import FellWithPeer, TrainingError

T = TypeVar("T")

_DEFAULT_SEC = 120  # importing torch from a cold network file system takes a minute
_SCOPE = "trainyard"  # Horovod's own are global, local_* and cross_*
_ALL = "all"
_WORD_SEC = 2.0  # how much later than rank 0 the others give up, so that its error comes first


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
        """Variables that every rank needs to find the others, besides its own slot."""
        address, port = self._server.server_address[:2]
        return {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": str(address),
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }

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


def check_in() -> None:
    """Collective. Returns when every rank of the job has arrived.

    Raises `TrainingError` naming who has not after HOROVOD_START_TIMEOUT seconds (default 120) on
    the lowest rank there is, and `FellWithPeer` on the others. Does nothing without a rendezvous,
    as under mpirun.
    """
    address = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
    port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT")
    rank, size = int(os.environ.get("HOROVOD_RANK", "0")), int(os.environ.get("HOROVOD_SIZE", "1"))
    if address is None or port is None or size == 1:
        return
    limit_sec = start_timeout_sec()
    store = _Store(address, int(port))
    if rank == 0:
        missing = _gather(store, size, limit_sec)
        store.put("word", " ".join(map(str, missing)) or _ALL)
    else:
        missing = _hear(store, rank, size, limit_sec)
    if missing:
        _give_up(rank, size, missing, limit_sec)


def start_timeout_sec() -> int:
    """Seconds that ranks wait for each other to start. Raises `ValueError` for a bad setting."""
    value = os.environ.get("HOROVOD_START_TIMEOUT", str(_DEFAULT_SEC))
    if not value.isascii() or not value.isdigit() or int(value) == 0:
        raise ValueError(f"HOROVOD_START_TIMEOUT={value} must be a whole number of seconds above 0")
    return int(value)


class _Store:
    """The launcher's key-value store."""

    def __init__(self, address: str, port: int) -> None:
        self._address, self._port = address, port

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


def _patiently(store: _Store, end: float, look: Callable[[], T | None]) -> T | None:
    """The first result of `look` that is not None; None once `end` has passed.

    Raises `TrainingError` if the store could still not be reached then.
    """
    nap_sec = 0.02
    while True:
        failed: OSError | None = None
        try:
            found = look()
            if found is not None:
                return found
        except OSError as error:
            failed = error
        if time.monotonic() >= end:
            if failed is not None:
                raise TrainingError(
                    f"the launcher's rendezvous at {store} cannot be reached ({failed}); see that "
                    "the launcher still runs and that its host and port are open to this one"
                ) from failed
            return None
        time.sleep(nap_sec)
        nap_sec = min(0.5, 1.5 * nap_sec)


def _announce(store: _Store, rank: int, end: float) -> None:
    _patiently(store, end, lambda: store.put(f"rank-{rank}", str(Peer.here(rank))))


def _came(store: _Store, rank: int) -> bool:
    return store.get(f"rank-{rank}") is not None


def _gather(store: _Store, size: int, limit_sec: float) -> list[int]:
    """The ranks that have not arrived at rank 0 within the limit."""
    end = time.monotonic() + limit_sec
    _announce(store, 0, end)
    missing = list(range(1, size))

    def all_here() -> bool | None:
        while missing and _came(store, missing[0]):
            missing.pop(0)
        return None if missing else True

    _patiently(store, end, all_here)
    return [other for other in missing if not _came(store, other)]


def _hear(store: _Store, rank: int, size: int, limit_sec: float) -> list[int]:
    """The missing ranks in rank 0's word; by own look if rank 0 does not come."""
    end = time.monotonic() + limit_sec + _WORD_SEC
    _announce(store, rank, end)
    word = _patiently(store, end, lambda: store.get("word"))
    if word is None and _came(store, 0):  # it came later, and counts from then
        word = _patiently(store, end + limit_sec, lambda: store.get("word"))
    if word is None:
        others = (r for r in range(size) if r != rank)
        return [r for r in others if r == 0 or not _came(store, r)]
    return [] if word == _ALL else [int(r) for r in word.split()]


def _give_up(rank: int, size: int, missing: Sequence[int], limit_sec: float) -> None:
    who = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    if rank == min(set(range(size)) - set(missing)):
        raise TrainingError(
            f"{who} of {size} did not start within {limit_sec:g} s; see what the launcher and that "
            "node say, or allow more time with HOROVOD_START_TIMEOUT (in seconds)"
        )
    time.sleep(3.0)  # the first rank to leave makes the launcher end the others
    raise FellWithPeer(f"rank {rank} ends because {who} did not start")
