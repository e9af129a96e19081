"""What is read from Slurm's environment and its controller's answers."""

import pytest

from launch.slurm.allocation import (
    Allocation,
    Node,
    addresses_of,
    gpus_per_node,
    nodes_from_json,
    ranks_per_node,
    require_rank_per_gpu,
    this_allocation,
)
from pipeline.config import ConfigError

NODES = """\
NodeName=node1 Arch=x86_64 CPUTot=16 Gres=gpu:h100:8 NodeAddr=10.0.0.1 NodeHostName=node1
NodeName=node2 Arch=x86_64 CPUTot=16 Gres=gpu:h100:8 NodeAddr=10.0.0.2 NodeHostName=node2
"""
JOB = (
    "JobId=7 JobName=x JOB_GRES=gpu:h100:3 "
    "Nodes=node1 CPU_IDs=0-1 Mem=0 GRES=gpu:h100:2(IDX:0-1) "
    "Nodes=node2 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:0) MinCPUsNode=1"
)


def scontrol(*command: str) -> str:
    """A controller that has two nodes and this job."""
    if command[1:3] == ("show", "hostnames"):
        return "node1\nnode2\n" if command[3] == "node[1-2]" else f"{command[3]}\n"
    return NODES if "node" in command else JOB


def allocation(*nodes: tuple[int, int]) -> Allocation:
    """Nodes of (ranks, GPUs)."""
    made = (Node(f"node{i}", f"10.0.0.{i}", *has) for i, has in enumerate(nodes, start=1))
    return Allocation("7", tuple(made), None, 0)


def in_a_job(**more: str) -> dict[str, str]:
    """Slurm's environment of a job on two nodes."""
    return {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"} | more


def test_uneven_nodes_are_read_in_their_order():
    env = in_a_job(SLURM_TASKS_PER_NODE="2,1", SLURM_CPUS_PER_TASK="8", SLURM_RESTART_COUNT="3")
    found = this_allocation(env, scontrol)
    nodes = (Node("node1", "10.0.0.1", 2, 2), Node("node2", "10.0.0.2", 1, 1))
    assert found == Allocation("7", nodes, 8, 3)
    assert found.ranks == 3
    assert nodes_from_json(found.to_json()) == nodes


def test_a_task_of_an_array_is_named_by_its_own_number():
    array = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}
    env = in_a_job(SLURM_TASKS_PER_NODE="1(x2)", **array)
    assert this_allocation(env, scontrol).job == "9_3"


@pytest.mark.parametrize(
    "env, message",
    [
        ({}, "not inside a Slurm job; submit it with sbatch"),
        (
            in_a_job(SLURM_HET_SIZE="2"),
            "job 7 is heterogeneous, with 2 components, and ranks would start on the first one "
            "only; submit it as one component",
        ),
        (in_a_job(SLURM_PACK_SIZE="3"), "job 7 is heterogeneous, with 3 components"),
        (
            in_a_job(SLURM_STEP_NUM_TASKS="8"),
            "srun has started this launcher 8 times in job 7; start it once",
        ),
        (
            in_a_job(SLURM_TASKS_PER_NODE="4(x2)", SLURM_NTASKS="6"),
            r"4\(x2\) tasks per node for --ntasks=6; submit with --nodes",
        ),
    ],
)
def test_what_is_no_job_or_not_as_asked_for_is_refused(env, message):
    with pytest.raises(ConfigError, match=message):
        this_allocation(env, scontrol)


@pytest.mark.parametrize(
    "text, counts", [("2", [2]), ("2(x2),1", [2, 2, 1]), ("8,4(x2)", [8, 4, 4])]
)
def test_tasks_per_node_are_spelled_out(text, counts):
    assert ranks_per_node(text) == counts


def resolve(name: str) -> str | None:
    return {"node1": "10.0.0.1", "node2": "127.0.1.1"}.get(name)


def nodes_named(*names: str) -> str:
    """As the controller shows nodes whose NodeAddr is their name."""
    return "\n".join(f"NodeName={n} X=1 NodeAddr={n} NodeHostName={n}" for n in names)


def test_a_node_address_that_is_a_name_is_resolved():
    assert addresses_of(nodes_named("node1"), resolve) == {"node1": "10.0.0.1"}


@pytest.mark.parametrize(
    "names, message",
    [
        (("node1", "node2"), "node2, the address of node2 in Slurm, is 127.0.1.1 here"),
        (("node3",), "node3, the address of node3 in Slurm, does not resolve"),
    ],
)
def test_an_address_that_leads_nowhere_or_home_is_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        addresses_of(nodes_named(*names), resolve)


def test_a_job_without_gpus_has_none():
    assert gpus_per_node("Nodes=node[1-2] CPU_IDs=0-1 Mem=0 GRES= X", scontrol) == {}


@pytest.mark.parametrize("nodes", [[(2, 2), (1, 1)], [(4, 0), (2, 0)]])
def test_one_rank_for_each_gpu_is_right(nodes):
    require_rank_per_gpu(allocation(*nodes))


@pytest.mark.parametrize(
    "nodes, message",
    [
        ([(1, 8)], "node1 has 8 GPUs in this job and 1 rank; .* such as --ntasks-per-node=8"),
        ([(2, 2), (2, 1)], "node2 has 1 GPUs in this job and 2 ranks; .* as many GPUs as ranks"),
        ([(2, 2), (2, 0)], "node2 has no GPU in this job and other nodes have"),
    ],
)
def test_ranks_that_do_not_match_the_gpus_are_refused(nodes, message):
    with pytest.raises(ConfigError, match=message):
        require_rank_per_gpu(allocation(*nodes))
