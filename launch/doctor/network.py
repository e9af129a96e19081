"""The network of a node, its interfaces and addresses, and NCCL's transport by its log."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launch.doctor.check import Check, Facts, Finding, Job, Rules, few
from pipeline.ranks.addresses import INTERFACE_OF, addresses_by_interface, resolves

# What a user may have set for them and NCCL.
_INTERFACE_VARIABLES = (*INTERFACE_OF.values(), "NCCL_SOCKET_IFNAME")
_CONNECTION = re.compile(r"NCCL INFO (?:Channel|Ring|Tree) .*->.* via (.+?)\s*$", re.MULTILINE)
_NETWORK = re.compile(r"NCCL INFO Using network (.+?)\s*$", re.MULTILINE)
_PLAIN_SOCKET = "NET/Socket"


def network_facts() -> Facts:
    """Interfaces with their IPv4 and IPv6 addresses, the node's address, InfiniBand devices.

    `wanted_interfaces` holds the variables by which the environment names interfaces.
    """
    interfaces = addresses_by_interface()
    address = node_address()
    infiniband = Path("/sys/class/infiniband")
    return {
        "interfaces": interfaces,
        "address": address,
        "interface": interface_of(address, interfaces),
        "host_resolves": resolves(socket.gethostname()),
        "wanted_interfaces": {n: os.environ[n] for n in _INTERFACE_VARIABLES if n in os.environ},
        "infiniband": sorted(p.name for p in infiniband.iterdir()) if infiniband.is_dir() else [],
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
    """Whether `variable`=`wanted` in the environment selects `interface`.

    HOROVOD_GLOO_IFACE is a name, GLOO_SOCKET_IFNAME one or several. NCCL_SOCKET_IFNAME is a
    comma-separated list of prefixes; `=` in front means whole names, `^` all but these.
    """
    if variable != "NCCL_SOCKET_IFNAME":
        return interface in wanted.split(",")
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
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: no such host
            return str(probe.getsockname()[0])
        except OSError:
            return None


def network(job: Job) -> Iterator[Finding]:
    """Checks that an interface has each node's address, that those in the environment exist, and
    that Horovod will find the address of each host's name."""
    seen = ", ".join(sorted({name for node in job.nodes for name in node["interfaces"]}))
    fix = f"Name one that exists ({seen}), or unset the variable."
    yield Finding("fail", job.where(_wrong_interface), fix)
    if job.engine != "torch":
        fix = "Add it to /etc/hosts, or start the ranks with torchrun (--launch.engine=torch)."
        nameless = job.where(
            lambda n: f"the host name {n['host']} has no address, without which Horovod crashes",
            when=lambda n: not n["host_resolves"],
        )
        yield Finding("fail" if job.engine == "horovod" else "warn", nameless, fix)
    fix = "Correct its address in Slurm (NodeAddr) or /etc/hosts, or give --launch.interface=NAME."
    homeless = job.where(
        lambda n: f"no interface holds the node's address {n['address']}",
        when=lambda n: (
            n["interface"] is None and not n["wanted_interfaces"].keys() & {*INTERFACE_OF.values()}
        ),
    )
    yield Finding("fail" if job.several_nodes else "warn", homeless, fix)
    if len({node["host"] for node in job.nodes}) > 1:
        alone = job.where(
            lambda n: f"its address is {n['address']}, which no other node reaches",
            when=lambda n: n["address"].startswith("127."),
        )
        yield Finding("fail", alone, fix)
    yield Finding("ok", few([f"{n['interface']} {n['address']}" for n in job.nodes]))


def _wrong_interface(node: Facts) -> str | None:
    for variable, wanted in node["wanted_interfaces"].items():
        if not any(matches(name, wanted, variable) for name in node["interfaces"]):
            return f"{variable}={wanted}, and there is no such interface"
    return None


NETWORK_CHECKS: Rules = {"network": network}


def nccl_transport(log_text: str) -> str | None:
    """The slowest kind of connection in NCCL's log, or None if there is none in it.

    NCCL writes it with NCCL_DEBUG=INFO in the environment, one file per rank with
    NCCL_DEBUG_FILE=<folder>/nccl.%h.%p. One line per connection, in versions 2.4 to 2.30:
    `host:pid:tid [gpu] NCCL INFO Channel 00/0 : 7[7] -> 8[0] [send] via NET/IB/0/GDRDMA`.
    From slow to fast: "NET/Socket" (TCP), "NET/<name>" of the network's plugin such as "NET/IB",
    the same with "/GDRDMA" when all such connections are direct between GPU and network card,
    "SHM" (the host's memory) and "P2P" (NVLink or PCIe). `log_text` may hold the logs of all ranks.
    """
    found = {_kind(match) for match in _CONNECTION.findall(log_text)}
    # The choice of network is in the log before the first connection over it.
    found = found or _chosen_networks(log_text)
    return min(found, key=_speed) if found else None


def transport_check(log_text: str, nodes: int) -> Check:
    """The transport between the ranks of a job on `nodes` nodes; a warning for plain sockets
    between nodes, or when the log does not say."""
    transport = nccl_transport(log_text)
    # Newer versions connect at the first use: connections inside a node may be all there is yet.
    # Only NVLink between nodes (MNNVL) needs no network for good.
    if nodes > 1 and transport in ("P2P", "SHM") and "P2P/MNNVL" not in log_text:
        transport = min(_chosen_networks(log_text), key=_speed, default=transport)
    name = "NCCL transport"
    if transport is None:
        fix = "Set NCCL_DEBUG=INFO and no NCCL_DEBUG_SUBSYS, so that NCCL says what it uses."
        return Check(name, "warn", "NCCL's log names no connection", fix)
    if nodes > 1 and transport == _PLAIN_SOCKET:
        why = "; no InfiniBand device was found" if "NET/IB : No device" in log_text else ""
        return Check(
            name,
            "warn",
            f"{transport}: gradients go through plain TCP sockets between the nodes{why}",
            "Give the job the cluster's InfiniBand, RoCE or EFA devices and NCCL plugin, and see "
            "that NCCL_IB_DISABLE is not 1 and locked memory is unlimited (ulimit -l).",
        )
    return Check(name, "ok", transport)


def _chosen_networks(log_text: str) -> set[str]:
    return {f"NET/{name}" for name in _NETWORK.findall(log_text)}


def _kind(connection: str) -> str:
    """`NET/AWS Libfabric/1/GDRDMA` -> `NET/AWS Libfabric/GDRDMA`, `P2P/IPC/read` -> `P2P`."""
    if "shared memory" in connection:  # as versions before 2.12 put it
        return "SHM"
    parts = connection.split("/")
    if parts[0] != "NET" or len(parts) < 2:
        return parts[0]
    return "/".join(parts[:2] + (["GDRDMA"] if "GDRDMA" in parts[2:] else []))


def _speed(kind: str) -> tuple[int, str]:
    if kind == _PLAIN_SOCKET:
        return 0, kind
    if kind.startswith("NET/"):
        return (2 if kind.endswith("/GDRDMA") else 1), kind
    return (3 if kind == "SHM" else 4), kind
