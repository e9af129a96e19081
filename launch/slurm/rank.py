"""One rank: finds its place, binds to the cores near its GPU, becomes the program.

Started by launch/slurm/__main__.py as `srun ... python -m launch.slurm.rank MODULE [options]`, and
by launch/local.py, which has told it its place.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.doctor.network import interface_of
from launch.slurm.allocation import Node, nodes_from_json
from launch.slurm.binding import bind_near_gpu
from pipeline.config import ConfigError, require
from pipeline.ranks.addresses import INTERFACE_OF, addresses_by_interface
from pipeline.system.failure import LATER, ExitCode, say_error
from pipeline.system.launched import Engine, torch_variables, without_ranks
from pipeline.system.machine import end_with_parent
from pipeline.train.folder import RunFolder

NODES = "TRAINYARD_NODES"
ENGINE = "TRAINYARD_ENGINE"
INTERFACE = "TRAINYARD_INTERFACE"
RUN_DIR = "TRAINYARD_RUN_DIR"
DIE_WITH = "TRAINYARD_LAUNCHER"
"""The process of a launcher on this machine."""


def rank_environment(
    env: Mapping[str, str], interfaces: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Variables for the engine and NCCL on this rank, from srun's environment.

    `interfaces` are the addresses of each network interface of this node. Raises `ConfigError` if
    srun has laid out the ranks in another way than planned, or no interface has the node's address.
    """
    nodes = nodes_from_json(env[NODES])
    rank, here = int(env["SLURM_PROCID"]), env["SLURMD_NODENAME"]
    node, local = [(node, local) for node in nodes for local in range(node.ranks)][rank]
    require(
        (node.name, str(local)) == (here, env["SLURM_LOCALID"]),
        f"rank {rank} is planned as number {local} of {node.name}, but srun started "
        f"it as number {env['SLURM_LOCALID']} of {here}; unset SLURM_DISTRIBUTION and "
        "SLURM_HOSTFILE, since ranks must count node by node",
    )
    engine: Engine = "torch" if env[ENGINE] == "torch" else "horovod"
    interface = choose_interface(
        node, env.get(INTERFACE, env.get(INTERFACE_OF[engine])), interfaces
    )
    return {
        **_who(engine, nodes, rank),
        INTERFACE_OF[engine]: interface,
        "NCCL_SOCKET_IFNAME": env.get("NCCL_SOCKET_IFNAME", f"={interface}"),
    }


def _who(engine: Engine, nodes: Sequence[Node], rank: int) -> dict[str, str]:
    """The variables that tell a rank of this engine which one it is."""
    if engine == "torch":
        return torch_variables(rank, [node.ranks for node in nodes])
    from pipeline.ranks.rendezvous import slot_environment, slots_of

    return slot_environment(slots_of([(node.name, node.ranks) for node in nodes])[rank])


def choose_interface(
    node: Node, wanted: str | None, interfaces: Mapping[str, Sequence[str]]
) -> str:
    """The interface that `wanted` names, or else the one that holds the node's address."""
    there = ", ".join(interfaces)
    if wanted is not None:
        require(
            set(wanted.split(",")) <= set(interfaces),  # Gloo of torch takes several
            f"--launch.interface={wanted} does not exist on {node.name}; there are: {there}",
        )
        return wanted
    found = interface_of(node.address, interfaces)
    if found is None:
        raise ConfigError(
            f"no network interface of {node.name} has its address {node.address}; name the one "
            f"that the nodes share with --launch.interface=NAME; there are: {there}"
        )
    return found


def _refuse(message: str) -> int:
    """Prints what is wrong, once on each node, and records it in the run's folder."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all when the first rank has ended
    if os.environ["SLURM_LOCALID"] == "0":
        if RUN_DIR in os.environ:
            RunFolder(Path(os.environ[RUN_DIR])).record_first_cause(message)
        say_error(message)
    time.sleep(2.0)  # so that ranks of other nodes get this far, too
    return ExitCode.WRONG_INPUT


def _die_with_launcher(process: str | None) -> None:
    """Has the rank save and leave when the launcher, that process, is gone: the end by SIGKILL of a
    launcher on this machine would leave ranks that nobody waits for."""
    if process is None:
        return
    end_with_parent(signal.SIGTERM)
    if os.getppid() != int(process):  # it was gone before
        sys.exit(ExitCode.FAILED)


def main(argv: list[str]) -> int:
    """Becomes the program; returns only on an error."""
    # These may come while the program still loads, and must not kill it.
    signal.pthread_sigmask(signal.SIG_BLOCK, LATER)
    _die_with_launcher(os.environ.pop(DIE_WITH, None))
    try:
        if NODES in os.environ:
            found = rank_environment(os.environ, addresses_by_interface())
            # An image may make all tasks ranks of torchrun, as Enroot does of those with PyTorch.
            other: Engine = "horovod" if os.environ[ENGINE] == "torch" else "torch"
            for name in os.environ.keys() - without_ranks(os.environ, other).keys():
                del os.environ[name]
            os.environ.update(found)
    except ConfigError as error:
        return _refuse(str(error))
    bind_near_gpu(os.environ)
    os.execv(sys.executable, [sys.executable, "-m", *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
