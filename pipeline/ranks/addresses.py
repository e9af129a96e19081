"""The addresses of this host, and whether Gloo will find one."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from pipeline.system.launched import Engine

log = logging.getLogger("trainyard")

INTERFACE_OF: dict[Engine, str] = {"horovod": "HOROVOD_GLOO_IFACE", "torch": "GLOO_SOCKET_IFNAME"}
"""The variable by which the Gloo of each engine is told its network interface."""


def addresses_by_interface() -> dict[str, list[str]]:
    """IPv4 and IPv6 addresses of each network interface of this host."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [a.address.partition("%")[0] for a in addresses if a.family in families]
        for name, addresses in psutil.net_if_addrs().items()
    }


def own_addresses() -> list[str]:
    """The addresses by which other hosts may know this one."""
    held = [address for held in addresses_by_interface().values() for address in held]
    return [address for address in held if not address.startswith("127.") and address != "::1"]


def resolves(name: str) -> bool:
    """Whether a host name has an address here."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def address_trouble(engine: Engine, several_nodes: bool) -> str | None:
    """Why this rank's Gloo would find no address to listen on, and what helps; None if it will.

    Horovod (0.28.1) asks for the address of this host's name, also where it is told an interface,
    and ends in a segmentation fault if there is none. Told no interface, torch then takes the
    loopback one, at which no other node reaches it.
    """
    variable, host = INTERFACE_OF[engine], socket.gethostname()
    wanted, there = os.environ.get(variable, ""), addresses_by_interface()
    usable = [name for name, held in there.items() if held]
    for name in filter(None, wanted.split(",") if engine == "torch" else [wanted]):
        if name not in usable:
            return (
                f"{variable}={name} names no network interface with an address on {host}; set it "
                f"to one of: {', '.join(usable)}"
            )
    if resolves(host) or (engine == "torch" and (wanted or not several_nodes)):
        return None
    other = "start the ranks with torchrun" if engine == "horovod" else f"set {variable}"
    return f"the host name {host} has no address on this machine; add it to /etc/hosts, or {other}"


_PORT_OF: dict[Engine, str] = {"horovod": "HOROVOD_GLOO_RENDEZVOUS_PORT", "torch": "MASTER_PORT"}
_LISTENS = "0A"  # the state of a socket in /proc/net/tcp (linux/tcp_states.h)


def warn_if_open(engine: Engine | None) -> None:
    """Logs that the launcher's rendezvous, if it is on this host, takes connections on every
    network interface, which no option of horovodrun (0.28.1) and torchrun (2.13) changes."""
    port = "" if engine is None else os.environ.get(_PORT_OF[engine], "")
    if engine is not None and port.isdecimal() and open_to_all(int(port)) and own_addresses():
        launcher = {"horovod": "horovodrun", "torch": "torchrun"}[engine]
        log.info(
            "network: %s takes connections at port %s on every interface of %s; whoever reaches it "
            "can disturb this job, so let only its nodes reach it",
            launcher, port, socket.gethostname(),
        )  # fmt: skip


def open_to_all(port: int) -> bool:
    """Whether a program of this host listens at `port` on every interface."""
    for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            rows = [line.split() for line in path.read_text().splitlines()[1:]]
        except OSError:
            continue
        for _, local, _, state, *_ in rows:
            address, _, number = local.partition(":")
            if state == _LISTENS and int(number, 16) == port and not int(address, 16):
                return True
    return False
