"""A rank's environment, from srun's variables and the job's nodes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest

from launch.slurm import rank
from launch.slurm.allocation import Node
from launch.slurm.rank import ENGINE, INTERFACE, NODES, choose_interface, rank_environment
from pipeline.config import ConfigError
from pipeline.system.launched import launched

# Three ranks, two on the first node.
UNEVEN = json.dumps(
    [
        {"name": "node1", "address": "10.0.0.1", "ranks": 2, "gpus": 2},
        {"name": "node2", "address": "10.0.0.2", "ranks": 1, "gpus": 1},
    ]
)
INTERFACES = {"lo": ["127.0.0.1"], "ib0": ["10.0.0.1", "fe80::1"], "eth0": ["10.0.0.2"]}


def srun(rank: int, local: int, node: str, engine: str = "horovod", **more: str) -> dict[str, str]:
    """The environment that srun gives one task."""
    return {
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURMD_NODENAME": node,
        NODES: UNEVEN, ENGINE: engine,
    } | more  # fmt: skip


def horovod(env: dict[str, str]) -> tuple[str, ...]:
    """rank/size, local, cross and host as Horovod gets them."""
    pairs = [
        f"{env[f'HOROVOD_{p}RANK']}/{env[f'HOROVOD_{p}SIZE']}" for p in ("", "LOCAL_", "CROSS_")
    ]
    return (*pairs, env["HOROVOD_HOSTNAME"], env["HOROVOD_GLOO_IFACE"])


def test_uneven_nodes_give_each_rank_its_place():
    places = [(0, 0, "node1"), (1, 1, "node1"), (2, 0, "node2")]
    found = [horovod(rank_environment(srun(*place), INTERFACES)) for place in places]
    assert found == [
        ("0/3", "0/2", "0/2", "node1", "ib0"),
        ("1/3", "1/2", "0/1", "node1", "ib0"),
        ("2/3", "0/1", "1/2", "node2", "eth0"),
    ]


def test_what_an_image_says_of_ranks_for_another_engine_does_not_reach_the_program(monkeypatch):
    """Enroot's hook for PyTorch sets torchrun's variables in every task."""
    for engine, other in (("horovod", "RANK"), ("torch", "HOROVOD_RANK")):
        env = srun(0, 0, "node1", engine, MASTER_ADDR="node1", MASTER_PORT="1")
        env |= dict.fromkeys(("RANK", "WORLD_SIZE", "HOROVOD_RANK", "HOROVOD_SIZE"), "0")
        monkeypatch.setattr(os, "environ", env)
        monkeypatch.setattr(os, "execv", lambda *_: None)
        monkeypatch.setattr(rank, "addresses_by_interface", lambda: INTERFACES)
        monkeypatch.setattr(rank, "bind_near_gpu", lambda _: None)
        monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
        rank.main(["pipeline.train"])
        assert other not in env
        found = launched(env)
        assert (found.engine, found.rank, found.size) == (engine, 0, 3)


def test_ranks_of_torch_get_the_same_places_in_torchruns_names():
    places = [(0, 0, "node1"), (1, 1, "node1"), (2, 0, "node2")]
    found = [rank_environment(srun(*place, "torch"), INTERFACES) for place in places]
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME")
    assert [tuple(env[name] for name in names) for env in found] == [
        ("0", "3", "0", "2", "ib0"), ("1", "3", "1", "2", "ib0"), ("2", "3", "0", "1", "eth0")
    ]  # fmt: skip
    assert not any(name.startswith("HOROVOD_") for env in found for name in env)


def test_nccl_talks_over_the_same_interface_unless_told_otherwise():
    assert rank_environment(srun(0, 0, "node1"), INTERFACES)["NCCL_SOCKET_IFNAME"] == "=ib0"
    told = srun(0, 0, "node1", NCCL_SOCKET_IFNAME="bond0")
    assert rank_environment(told, INTERFACES)["NCCL_SOCKET_IFNAME"] == "bond0"


def test_an_interface_named_for_horovod_is_taken_too():
    told = srun(0, 0, "node1", HOROVOD_GLOO_IFACE="eth0")
    assert rank_environment(told, INTERFACES)["HOROVOD_GLOO_IFACE"] == "eth0"


def test_several_interfaces_named_for_torch_are_taken_too():
    told = srun(0, 0, "node1", "torch", GLOO_SOCKET_IFNAME="eth0,ib0")
    found = rank_environment(told, INTERFACES)
    assert found["GLOO_SOCKET_IFNAME"] == "eth0,ib0"
    assert found["NCCL_SOCKET_IFNAME"] == "=eth0,ib0"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            srun(1, 0, "node2"),
            "rank 1 is planned as number 1 of node1, but srun started it as numb",
        ),
        (
            srun(0, 0, "node1", **{INTERFACE: "ib9"}),
            "--launch.interface=ib9 does not exist on node1; there are: lo, ib0, eth0",
        ),
    ],
)
def test_a_place_or_interface_that_is_not_as_planned_is_refused(env, message):
    with pytest.raises(ConfigError, match=message):
        rank_environment(env, INTERFACES)


def test_an_address_that_no_interface_has_asks_for_the_interface():
    lost = Node("node3", "10.9.9.9", 1, 0)
    with pytest.raises(ConfigError, match="no network interface of node3 has its address 10.9.9.9"):
        choose_interface(lost, None, INTERFACES)
    assert choose_interface(lost, "eth0", INTERFACES) == "eth0"


def blocks_sigterm(pid: int) -> bool:
    """Whether the process holds SIGTERM back at present."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_still_loads_when_another_has_failed_ends_with_its_own_code(rank):
    """srun ends all by SIGTERM when the first rank has failed, and returns the highest code."""
    nodes = [{"name": "node1", "address": "127.0.0.1", "ranks": 2, "gpus": 0}]
    env = os.environ | srun(rank, rank, "node1") | {NODES: json.dumps(nodes)}
    command = [sys.executable, "-m", "launch.slurm.rank", "pipeline.evaluate"]
    job = subprocess.Popen(
        [*command, "--checkpoint", "none.pt"], cwd=jobs.REPOSITORY, env=env, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    while job.poll() is None and not blocks_sigterm(job.pid):
        time.sleep(0.001)
    assert job.poll() is None, "it never held SIGTERM back"
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 2, said
    assert ("error: --checkpoint none.pt does not exist" in said) == (rank == 0)
