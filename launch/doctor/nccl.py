"""Reads in NCCL's own log over what its ranks talk: NVLink, shared memory, RDMA or plain sockets.

NCCL writes it with NCCL_DEBUG=INFO in the environment, one file per rank with
NCCL_DEBUG_FILE=<folder>/nccl.%h.%p. One line per connection, in versions 2.4 to 2.30:
`host:pid:tid [gpu] NCCL INFO Channel 00/0 : 7[7] -> 8[0] [send] via NET/IB/0/GDRDMA`.
"""

from __future__ import annotations

import re

from launch.doctor.check import Check

_CONNECTION = re.compile(r"NCCL INFO (?:Channel|Ring|Tree) .*->.* via (.+?)\s*$", re.MULTILINE)
_NETWORK = re.compile(r"NCCL INFO Using network (.+?)\s*$", re.MULTILINE)
_PLAIN_SOCKET = "NET/Socket"


def nccl_transport(log_text: str) -> str | None:
    """The slowest kind of connection in NCCL's log, or None if there is none in it.

    From slow to fast: "NET/Socket" (TCP), "NET/<name>" of the network's plugin such as "NET/IB",
    the same with "/GDRDMA" when every such connection goes straight between GPU and network card,
    "SHM" (the host's memory) and "P2P" (NVLink or PCIe). `log_text` may hold the logs of all ranks.
    """
    found = {_kind(match) for match in _CONNECTION.findall(log_text)}
    # The choice of network is in the log before the first connection over it.
    found = found or _chosen_networks(log_text)
    return min(found, key=_speed) if found else None


def transport_check(log_text: str, nodes: int) -> Check:
    """What the ranks of a job on `nodes` nodes talk over; a warning for plain sockets between
    nodes, or when the log does not tell."""
    transport = nccl_transport(log_text)
    # Newer versions connect at the first use: connections inside a node may be all there is yet.
    # Only NVLink between nodes (MNNVL) needs no network for good.
    if nodes > 1 and transport in ("P2P", "SHM") and "P2P/MNNVL" not in log_text:
        transport = min(_chosen_networks(log_text), key=_speed, default=transport)
    name = "NCCL transport"
    if transport is None:
        cure = "Set NCCL_DEBUG=INFO and no NCCL_DEBUG_SUBSYS, so that NCCL says what it uses."
        return Check(name, "warn", "NCCL's log names no connection", cure)
    if nodes > 1 and transport == _PLAIN_SOCKET:
        lacks = "; no InfiniBand device was found" if "NET/IB : No device" in log_text else ""
        return Check(
            name,
            "warn",
            f"{transport}: gradients go through plain TCP sockets between the nodes{lacks}",
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
