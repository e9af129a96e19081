"""Starts the ranks of one job on this machine, without ssh and without horovodrun.

horovodrun returns 1 whatever its ranks return, and gives them 5 s to end. Here the caller holds
every rank's process, and with it the exit code.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.system.launched import Engine


class Server(Protocol):
    """A rendezvous that runs until `stop`."""

    @property
    def shared_environment(self) -> dict[str, str]:
        """The variables that every rank needs to find the others, besides who it is."""

    def environment(self, rank: int) -> dict[str, str]:
        """The variables by which one rank finds the others."""

    def stop(self) -> None:
        """Ends it."""


def open_rendezvous(engine: Engine, address: str, hosts: Sequence[tuple[str, int]]) -> Server:
    """A rendezvous on `address` of this machine, for ranks of `engine` laid out over `hosts`, pairs
    of (name, number of ranks). Raises OSError if this machine has no such address."""
    if engine == "torch":
        from pipeline.ranks.store import TorchRendezvous

        return TorchRendezvous(address, hosts)
    from pipeline.ranks.rendezvous import Rendezvous

    return Rendezvous(address, hosts)


class LocalRanks:
    """Running ranks: `processes[r]` is rank r. As a context manager, `stop` at the end."""

    def __init__(self, processes: list[subprocess.Popen[str]], server: Server | None) -> None:
        self.processes = processes
        self._server = server

    def __enter__(self) -> LocalRanks:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, patience_sec: float = 5.0) -> list[int]:
        """Ends the ranks that still run, by SIGTERM and after `patience_sec` by SIGKILL, then the
        rendezvous. Returns the exit codes by rank."""
        for process in self.processes:
            process.terminate()  # does nothing to one that has ended
        for process in self.processes:
            try:
                process.wait(patience_sec)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._server is not None:
            self._server.stop()
            self._server = None
        return [process.returncode for process in self.processes]


def start_ranks(
    argv: Sequence[str], ranks: int, env: Mapping[str, str], engine: Engine = "horovod",
    **popen: Any,
) -> LocalRanks:  # fmt: skip
    """Starts the command `argv` once per rank and returns at once.

    `env` is the environment of the ranks; what `engine` needs to find the others is added to it.
    One rank gets nothing added and runs alone, for which no engine need be installed. `popen`
    are arguments of `subprocess.Popen`; pipes carry text. The ranks talk over the loopback
    interface. Keep the result until the ranks have ended: it holds their rendezvous.
    """
    if ranks == 1:
        return LocalRanks([subprocess.Popen(argv, env=dict(env), text=True, **popen)], None)
    server = open_rendezvous(engine, "127.0.0.1", [("localhost", ranks)])
    loopback = {"HOROVOD_GLOO_IFACE": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    started = LocalRanks([], server)
    try:
        for rank in range(ranks):
            rank_env = {**env, **loopback, **server.environment(rank)}
            started.processes.append(subprocess.Popen(argv, env=rank_env, text=True, **popen))
    except OSError:
        started.stop()
        raise
    return started
