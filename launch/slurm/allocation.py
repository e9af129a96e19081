"""The allocation of this job: nodes, addresses, ranks and GPUs; and srun's task layout on it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from launch.doctor.network import resolve
from launch.end import say
from pipeline.config import ConfigError, require
from pipeline.system.console import counted

Run = Callable[..., str]
"""Runs a command and returns its output."""
Resolve = Callable[[str], str | None]
"""The IPv4 address of a name, or None."""


@dataclass(frozen=True)
class Node:
    """One node of the job, as far as the job may use it."""

    name: str
    address: str
    """IPv4 address that the other nodes reach it by."""
    ranks: int
    gpus: int


@dataclass(frozen=True)
class Allocation:
    """The job's nodes, in the order of the ranks."""

    job: str
    nodes: tuple[Node, ...]
    cpus_per_task: int | None
    """As requested at submission; srun does not inherit it."""
    restarts: int
    """How often Slurm has started this job before."""

    @property
    def ranks(self) -> int:
        """Ranks of the whole job."""
        return sum(node.ranks for node in self.nodes)

    @property
    def hosts(self) -> list[tuple[str, int]]:
        """(name, number of ranks) of each node."""
        return [(node.name, node.ranks) for node in self.nodes]

    def to_json(self) -> str:
        """The nodes as JSON, for the ranks' environment; `nodes_from_json` reads it."""
        return json.dumps([asdict(node) for node in self.nodes])


def nodes_from_json(text: str) -> tuple[Node, ...]:
    """The nodes of `Allocation.to_json`."""
    return tuple(Node(**node) for node in json.loads(text))


class NotHere(ConfigError):
    """One of Slurm's commands does not exist here, as inside a container."""


class Killed(ConfigError):
    """One of Slurm's commands was ended by a signal."""


def output_of(*command: str) -> str:
    """The output of one of Slurm's commands. Raises `ConfigError` if it fails, `Killed` if a signal
    ends it, `NotHere` if there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise NotHere(f"{command[0]} is not here; run this where Slurm's programs are") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{' '.join(command)} cannot be run: {error}") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise Killed(f"{' '.join(command)} was ended by {name}")
    said = " ".join((done.stderr or done.stdout).split())
    require(done.returncode == 0, f"{' '.join(command)} failed: {said}")
    return done.stdout


def this_allocation(
    env: Mapping[str, str], run: Run = output_of, resolve: Resolve = resolve
) -> Allocation:
    """The allocation that this process runs in, from Slurm's environment and its controller.

    Raises `ConfigError` outside of one, and for a node whose address others cannot use.
    """
    if "SLURM_JOB_ID" not in env:
        raise ConfigError(
            "this is not inside a Slurm job; submit it with sbatch slurm/resnet50_8gpu.sh, which "
            "python -m launch.slurm --script resnet50_8gpu prints too, or on one machine without "
            "Slurm use python -m launch.local -np N train"
        )
    job = env["SLURM_JOB_ID"]
    components = int(env.get("SLURM_HET_SIZE") or env.get("SLURM_PACK_SIZE") or 1)  # before 20.02
    require(
        components == 1,
        f"job {job} is heterogeneous, with {components} components, and ranks would start on the "
        "first one only; submit it as one component, without ':' on the command line or "
        "'#SBATCH hetjob' in the script",
    )
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or 1)
    require(
        tasks == 1,
        f"srun has started this launcher {tasks} times in job {job}; start it once, as a batch "
        "script does on its first node: it starts the ranks itself",
    )
    if "SLURM_ARRAY_TASK_ID" in env:  # the last task has the number of the whole array
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    try:
        addresses, gpus = _from_controller(job, env["SLURM_JOB_NODELIST"], run, resolve)
    except NotHere:
        addresses, gpus = from_variables(env, resolve)
    ranks = ranks_per_node(env["SLURM_TASKS_PER_NODE"])
    asked = int(env.get("SLURM_NTASKS", sum(ranks)))
    require(
        asked == sum(ranks),
        f"Slurm has laid out {env['SLURM_TASKS_PER_NODE']} tasks per node for --ntasks={asked}; "
        "submit with --nodes and --ntasks-per-node, or with --ntasks alone",
    )
    nodes = (
        Node(name, address, count, gpus.get(name, 0))
        for (name, address), count in zip(addresses.items(), ranks, strict=True)
    )
    cpus = env.get("SLURM_CPUS_PER_TASK")
    restarts = int(env.get("SLURM_RESTART_COUNT", "0"))
    return Allocation(job, tuple(nodes), int(cpus) if cpus else None, restarts)


Known = tuple[dict[str, str], dict[str, int]]
"""The address of each node, in their order, and its GPUs."""


def _from_controller(job: str, nodes: str, run: Run, resolve: Resolve) -> Known:
    names = run("scontrol", "show", "hostnames", nodes).split()
    addresses = addresses_of(run("scontrol", "-o", "show", "node", nodes), resolve)
    gpus = gpus_per_node(run("scontrol", "-o", "-d", "show", "job", job), run)
    return {name: addresses[name] for name in names}, gpus


def from_variables(env: Mapping[str, str], resolve: Resolve = resolve) -> Known:
    """What the controller would say, from the variables of the job: without scontrol, as in a
    container. Nodes are reached by their names, and all have as many GPUs as this one."""
    shown = "\n".join(
        f"NodeName={name} X=1 NodeAddr={name} NodeHostName={name}"
        for name in hostnames(env["SLURM_JOB_NODELIST"])
    )
    asked = re.search(
        r"(\d+)$", env.get("SLURM_GPUS_PER_NODE") or env.get("SLURM_GPUS_ON_NODE", "")
    )
    indices = env.get("SLURM_JOB_GPUS") or env.get("SLURM_STEP_GPUS")
    count = int(asked[1]) if asked else len(indices.split(",")) if indices else 0
    addresses = addresses_of(shown, resolve)
    say(
        "scontrol is not here, as inside a container: addresses are those of the nodes' names, and "
        f"each node is taken to have {counted(count, 'GPU')}"
    )
    return addresses, dict.fromkeys(addresses, count)


def hostnames(text: str) -> list[str]:
    """Slurm's "node[1-2,05],gpu" as ["node1", "node2", "node05", "gpu"]."""
    return [name for one in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text) for name in _spelled(one)]


def _spelled(pattern: str) -> list[str]:
    before, bracket, rest = pattern.partition("[")
    if not bracket:
        return [pattern]
    spans, _, after = rest.partition("]")
    numbers: list[str] = []
    for span in spans.split(","):
        first, _, last = span.partition("-")
        numbers += [f"{n:0{len(first)}}" for n in range(int(first), int(last or first) + 1)]
    return [before + number + end for number in numbers for end in _spelled(after)]


def ranks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def addresses_of(shown: str, resolve: Resolve = resolve) -> dict[str, str]:
    """The IPv4 address of each node, from the lines of `scontrol -o show node`.

    NodeAddr there is an address or a name. Raises `ConfigError` for a name that does not resolve,
    or resolves to the node itself when there are several hosts (Debian gives a host's own name
    127.0.1.1).
    """
    pattern = r"^NodeName=(\S+).*? NodeAddr=(\S+) NodeHostName=(\S+)"
    rows = re.findall(pattern, shown, re.MULTILINE)
    hosts = {host for _, _, host in rows}
    found = {}
    for name, given, _ in rows:
        address = resolve(given)
        fix = "set NodeAddr in slurm.conf to an address that all nodes reach"
        if address is None:
            raise ConfigError(f"{given}, the address of {name} in Slurm, does not resolve; {fix}")
        if address.startswith("127.") and len(hosts) > 1:
            raise ConfigError(
                f"{given}, the address of {name} in Slurm, is {address} here, where no other node "
                f"can reach it; {fix}"
            )
        found[name] = address
    return found


def gpus_per_node(shown: str, run: Run) -> dict[str, int]:
    """GPUs of the job by node, from `scontrol -o -d show job`."""
    found: dict[str, int] = {}
    for nodes, resources in re.findall(r" Nodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*)", shown):
        # gpu:h100:2(IDX:0-1), with or without the type
        count = sum(map(int, re.findall(r"gpu(?::[^:(,]+)?:(\d+)", resources)))
        found |= dict.fromkeys(run("scontrol", "show", "hostnames", nodes).split(), count)
    return found


def require_rank_per_gpu(allocation: Allocation) -> None:
    """Raises `ConfigError` unless every node with GPUs has one rank for each of them."""
    for node in allocation.nodes:
        require(
            node.gpus in (0, node.ranks),
            f"{node.name} has {node.gpus} GPUs in this job and {counted(node.ranks, 'rank')}; "
            f"submit with one rank for each GPU, such as --ntasks-per-node={node.gpus}, or ask for "
            "as many GPUs as ranks",
        )
    without = [node.name for node in allocation.nodes if not node.gpus]
    require(
        len(without) in (0, len(allocation.nodes)),
        f"{', '.join(without)} has no GPU in this job and other nodes have; give every node some",
    )


def layout(allocation: Allocation) -> list[str]:
    """srun's options for one task per rank, node by node, all ended when one fails.

    The ranks bind themselves to cores (launch/slurm/binding.py), since only they know their GPU.
    """
    options = [
        f"--nodes={len(allocation.nodes)}",
        f"--ntasks={allocation.ranks}",
        "--distribution=block",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
    ]
    if allocation.cpus_per_task is not None:
        options.append(f"--cpus-per-task={allocation.cpus_per_task}")
    return options


def one_per_node(allocation: Allocation) -> list[str]:
    """srun's options for one task on each node, with all the cores and GPUs the job has there."""
    count = len(allocation.nodes)
    options = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--cpu-bind=none"]
    gpus = sum(node.gpus for node in allocation.nodes)
    return [*options, f"--gpus={gpus}"] if gpus else options


def one_per_node_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` without the variables that change the layout of such a step: sbatch passes the options
    of the submission on to every srun."""
    others = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_NTASKS_PER_GPU")
    return {name: value for name, value in env.items() if name not in others}
