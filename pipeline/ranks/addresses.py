"""The addresses of this host, and whether Gloo will find one."""

from __future__ import annotations

import os
import socket

from pipeline.system.launched import Engine

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
    """Every address of this host."""
    return [address for held in addresses_by_interface().values() for address in held]


def resolves(name: str) -> bool:
    """Whether a host name has an address here."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def address_trouble(engine: Engine, several_nodes: bool) -> str | None:
    """Why this rank's Gloo would find no address to listen on, and what helps; None if it will.

    Told no interface, Gloo asks for the address of this host's name. Horovod's (0.28.1) ends in a
    segmentation fault where there is none; torch's takes the loopback interface, at which no other
    node reaches it.
    """
    variable = INTERFACE_OF[engine]
    wanted, there = os.environ.get(variable, ""), addresses_by_interface()
    usable = [name for name, held in there.items() if held]
    for name in filter(None, wanted.split(",") if engine == "torch" else [wanted]):
        if name not in usable:
            return (
                f"{variable}={name} names no network interface with an address on "
                f"{socket.gethostname()}; set it to one of: {', '.join(usable)}"
            )
    host = socket.gethostname()
    if wanted or resolves(host) or (engine == "torch" and not several_nodes):
        return None
    return (
        f"the host name {host} has no address on this machine, and by it Gloo looks for one; add "
        f"it to /etc/hosts, or set {variable} to the network interface that the ranks share "
        f"({', '.join(usable)})"
    )
