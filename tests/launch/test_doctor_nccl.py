"""What NCCL's log says the ranks talk over. The lines have the form of NCCL 2.4 to 2.30."""

import pytest

from launch.doctor.network import nccl_transport, transport_check

INSIDE = "n1:10:31 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/IPC/read\n"
MEMORY = "n1:10:31 [0] NCCL INFO Channel 01 : 1[1] -> 2[2] via SHM/direct/direct\n"
SOCKET = "n1:11:32 [1] NCCL INFO Channel 02/0 : 1[1] -> 2[0] [send] via NET/Socket/3\n"
RDMA = "n1:11:32 [1] NCCL INFO Channel 02/0 : 1[1] -> 2[0] [send] via NET/IB/0(1)/GDRDMA\n"
STAGED = "n2:11:32 [1] NCCL INFO Channel 03/0 : 1[1] -> 2[0] [receive] via NET/IB/1\n"
NO_DEVICE = "n1:10:10 [0] NCCL INFO NET/IB : No device found.\n"


@pytest.mark.parametrize(
    ("log", "transport"),
    [
        (INSIDE, "P2P"),
        (INSIDE + MEMORY, "SHM"),
        ("n1:9:9 [2] NCCL INFO Ring 00 : 2[0] -> 3[0] via direct shared memory\n", "SHM"),
        (INSIDE + RDMA, "NET/IB/GDRDMA"),
        (INSIDE + RDMA + STAGED, "NET/IB"),
        (RDMA + SOCKET + INSIDE, "NET/Socket"),
        ("n:1:2 [0] NCCL INFO Ring 00 : 15 -> 0 [receive] via NET/Socket/0\n", "NET/Socket"),
        (
            "n:1:2 [1] NCCL INFO Channel 07/0 : 1[1] -> 0[0] [send] via NET/AWS Libfabric/1/GDRDMA",
            "NET/AWS Libfabric/GDRDMA",
        ),
        ("[2026-05-05 06:16:47] n:1:2 [1] NCCL INFO Using network IBext_v8\n", "NET/IBext_v8"),
        ("n:1:2 [0] NCCL INFO Using network Socket\n" + INSIDE, "P2P"),
        ("n1:10:10 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>\n" + NO_DEVICE, None),
        ("step 100 went via NET/Socket/0 -> of our own making\n", None),
        ("", None),
    ],
)
def test_the_slowest_connection_is_found(log, transport):
    assert nccl_transport(log) == transport


def test_plain_sockets_between_nodes_are_a_warning_with_the_reason():
    check = transport_check(NO_DEVICE + INSIDE + SOCKET, nodes=2)
    assert check.status == "warn"
    assert "plain TCP sockets" in check.found and "no InfiniBand device was found" in check.found
    assert "NCCL_IB_DISABLE" in check.cure


CHOSEN = "n1:10:31 [0] NCCL INFO Using network Socket\n"


@pytest.mark.parametrize(
    ("log", "nodes", "status"),
    [
        # Connections inside a node do not hide the network between nodes.
        (CHOSEN + INSIDE, 2, "warn"),
        (CHOSEN + INSIDE, 1, "ok"),
        (CHOSEN + INSIDE + INSIDE.replace("IPC/read", "MNNVL"), 2, "ok"),
        (INSIDE + RDMA, 2, "ok"),
        ("nothing\n", 2, "warn"),
    ],
)
def test_what_is_fast_or_inside_a_node_is_fine(log, nodes, status):
    assert transport_check(log, nodes).status == status
