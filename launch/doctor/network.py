"""The network of a node: its interfaces, its own address, and which interface holds that."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.doctor.check import Check, Facts, Job, few

# What a user may have set for Horovod and NCCL.
_INTERFACE_VARIABLES = ("HOROVOD_GLOO_IFACE", "NCCL_SOCKET_IFNAME")


def network_facts() -> Facts:
    """Interfaces with their IPv4 and IPv6 addresses, the node's address, InfiniBand devices.

    `wanted_interfaces` holds the variables by which the environment names interfaces.
    """
    interfaces = read_interfaces()
    address = node_address()
    infiniband = Path("/sys/class/infiniband")
    return {
        "interfaces": interfaces,
        "address": address,
        "interface": interface_of(address, interfaces),
        "wanted_interfaces": {n: os.environ[n] for n in _INTERFACE_VARIABLES if n in os.environ},
        "infiniband": sorted(p.name for p in infiniband.iterdir()) if infiniband.is_dir() else [],
    }


def read_interfaces() -> dict[str, list[str]]:
    """Addresses by interface; empty without psutil, which comes with Horovod."""
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return {}
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [a.address.partition("%")[0] for a in addresses if a.family in families]
        for name, addresses in psutil.net_if_addrs().items()
    }


def interface_of(address: str, interfaces: Mapping[str, Sequence[str]]) -> str | None:
    """The interface that holds `address`, or None."""
    return next((name for name, held in interfaces.items() if address in held), None)


def node_address() -> str:
    """The address under which other nodes reach this one: Slurm's NodeAddr, else the host name's,
    else that of the default route; the loopback address when there is no network."""
    for find in (_slurm_address, lambda: resolve(socket.gethostname()), _default_route_address):
        address = find()
        # Debian gives the host's name 127.0.1.1, which no other node can use. Slurm is believed:
        # a cluster on one machine lives on the loopback interface.
        if address and (find is _slurm_address or not address.startswith("127.")):
            return address
    return "127.0.0.1"


def matches(interface: str, wanted: str, variable: str) -> bool:
    """Whether the environment's `variable`=`wanted` takes `interface`.

    HOROVOD_GLOO_IFACE is a name. NCCL_SOCKET_IFNAME is a comma-separated list of prefixes; `=` in
    front means whole names, `^` all but these.
    """
    if variable == "HOROVOD_GLOO_IFACE":
        return interface == wanted
    unwanted, names = wanted.startswith("^"), wanted.removeprefix("^")
    exact, parts = names.startswith("="), names.removeprefix("=").split(",")
    hit = any(interface == part if exact else interface.startswith(part) for part in parts)
    return hit != unwanted


def _slurm_address() -> str | None:
    """NodeAddr of this node as Slurm knows it: node names need not resolve."""
    node = os.environ.get("SLURMD_NODENAME")
    if node is None or shutil.which("scontrol") is None:
        return None
    try:
        shown = subprocess.run(
            ["scontrol", "-o", "show", "node", node], capture_output=True, text=True, timeout=5
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = [word for word in shown.split() if word.startswith("NodeAddr=")]
    return resolve(words[0].partition("=")[2]) if words else None


def resolve(name: str) -> str | None:
    """The IPv4 address of a host name or address; None if there is none."""
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def _default_route_address() -> str | None:
    """The address this node would send from; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: leads to no one
            return str(probe.getsockname()[0])
        except OSError:
            return None


def network(job: Job) -> Check | None:
    """An interface of each node holds its address, and those that the environment names exist."""
    if not any(node["interfaces"] for node in job.nodes):
        return None  # psutil, which lists them, comes with Horovod: its check tells
    wrong = job.where(_wrong_interface)
    if wrong:
        seen = ", ".join(sorted({name for node in job.nodes for name in node["interfaces"]}))
        cure = f"Name one that is there ({seen}), or unset the variable."
        return Check("network", "fail", wrong, cure)
    cure = "Mend its address in Slurm (NodeAddr) or /etc/hosts, or give --launch.interface=NAME."
    homeless = job.where(
        lambda n: (
            f"no interface holds the node's address {n['address']}"
            if n["interface"] is None and "HOROVOD_GLOO_IFACE" not in n["wanted_interfaces"]
            else None
        )
    )
    if homeless:
        return Check("network", "fail" if job.several_nodes else "warn", homeless, cure)
    alone = job.where(
        lambda n: (
            f"its address is {n['address']}, which no other node reaches"
            if n["address"].startswith("127.")
            else None
        )
    )
    if alone and len({node["host"] for node in job.nodes}) > 1:
        return Check("network", "fail", alone, cure)
    return Check("network", "ok", few([f"{n['interface']} {n['address']}" for n in job.nodes]))


def _wrong_interface(node: Facts) -> str | None:
    for variable, wanted in node["wanted_interfaces"].items():
        if not any(matches(name, wanted, variable) for name in node["interfaces"]):
            return f"{variable}={wanted}, and there is no such interface"
    return None


NETWORK_CHECKS = (network,)
