"""Where srun puts the ranks of an allocation with fake GPUs, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jobs
import pytest

pytestmark = pytest.mark.slurm

# The launcher's own steps, up to the program, which here says where it is.
_LAUNCH = """\
import os, sys
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)
from launch.slurm.allocation import require_rank_per_gpu, this_allocation
from pipeline.ranks.rendezvous import Rendezvous
from launch.slurm.__main__ import Relay
from launch.slurm.srun import layout, one_per_node, one_per_node_environment, srun
from launch.slurm.rank import NODES
allocation = this_allocation(os.environ)
require_rank_per_gpu(allocation)
server = Rendezvous(allocation.nodes[0].address, allocation.hosts)
env = {**os.environ, **server.environment, NODES: allocation.to_json()}
command = srun(layout(allocation), [sys.executable, "-m", "launch.slurm.rank", "place"])
Relay().run(srun(one_per_node(allocation), [sys.executable, "-m", "place"]),
            one_per_node_environment(env))
sys.exit(Relay().run(command, env))
"""


def places(slurm, tmp_path: Path, *sbatch: str) -> tuple[list[dict[str, str]], ...]:
    """The environment of every rank of a job submitted with `sbatch`, by rank; and of the one task
    of each node that looks at it before the ranks start, by node."""
    paths = [str(jobs.REPOSITORY), str(jobs.REPOSITORY / "tests")]
    (tmp_path / "launch_places.py").write_text(_LAUNCH.replace("PATHS", repr(paths)))
    log = tmp_path / "job.log"
    job = slurm.submit(
        f"--output={log}", *sbatch, f"--wrap={sys.executable} {tmp_path}/launch_places.py",
        cwd=jobs.REPOSITORY,
    )  # fmt: skip
    assert slurm.wait_for_end(job) == "COMPLETED", log.read_text()
    found = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    nodes = [place for place in found if "HOROVOD_RANK" not in place]
    ranks = [place for place in found if "HOROVOD_RANK" in place]
    return (
        sorted(ranks, key=lambda place: int(place["HOROVOD_RANK"])),
        sorted(nodes, key=lambda place: place["SLURMD_NODENAME"]),
    )


def layout_of(found: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    """(node, local rank, cross rank/size) by rank."""
    return [
        (
            place["SLURMD_NODENAME"], place["HOROVOD_LOCAL_RANK"],
            f"{place['HOROVOD_CROSS_RANK']}/{place['HOROVOD_CROSS_SIZE']}",
        )
        for place in found
    ]  # fmt: skip


def test_all_gpus_of_two_nodes_have_one_rank_each(slurm, tmp_path):
    found, nodes = places(slurm, tmp_path, "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8")
    assert [place["HOROVOD_RANK"] for place in found] == [str(rank) for rank in range(16)]
    assert layout_of(found) == [
        (f"node{node + 1}", str(local), f"{node}/2") for node in range(2) for local in range(8)
    ]
    assert {place["CUDA_VISIBLE_DEVICES"] for place in found} == {"0,1,2,3,4,5,6,7"}
    assert [place["CUDA_VISIBLE_DEVICES"] for place in nodes] == ["0,1,2,3,4,5,6,7"] * 2
    assert {place["HOROVOD_GLOO_IFACE"] for place in found} == {"lo"}


def test_a_gpu_for_each_task_shows_each_rank_its_own(slurm, tmp_path):
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1")
    found, nodes = places(slurm, tmp_path, *options)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in nodes] == ["0,1", "0,1"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in found] == ["0", "1", "0", "1"]
    assert [place["HOROVOD_LOCAL_RANK"] for place in found] == ["0", "1", "0", "1"]


def test_uneven_nodes_count_their_ranks_node_by_node(slurm, tmp_path):
    found, _ = places(slurm, tmp_path, "--nodes=2", "--ntasks=3", "--export=NONE")
    assert layout_of(found) == [
        ("node1", "0", "0/2"), ("node1", "1", "0/1"), ("node2", "0", "1/2")
    ]  # fmt: skip


def test_slurm_refuses_more_gpus_than_there_are(slurm, tmp_path):
    with pytest.raises(AssertionError, match="Requested node configuration is not available"):
        places(slurm, tmp_path, "--nodes=2", "--gpus-per-node=9")


def failed(slurm, small_data, tmp_path, *sbatch: str, options: tuple[str, ...] = ()) -> str:
    """The log of a training that cannot start, its exit code 2 seen."""
    log = tmp_path / "job.log"
    job = slurm.submit(
        "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1",
        f"--output={log}", *sbatch, str(jobs.REPOSITORY / "slurm" / "resnet152_64gpu.sh"),
        *jobs.small_settings(small_data, tmp_path)[2:], "--data.dataset=null", *options,
        cwd=jobs.REPOSITORY,
    )  # fmt: skip
    assert slurm.wait_for_end(job) == "FAILED"
    assert slurm.job(job)["ExitCode"] == "2:0", log.read_text()
    return log.read_text()


def test_fewer_ranks_than_gpus_are_refused_before_anything_starts(slurm, small_data, tmp_path):
    log = failed(slurm, small_data, tmp_path, "--gpus-per-node=8")
    assert (
        "error: node1 has 8 GPUs in this job and 1 rank; submit with one rank for each GPU" in log
    )
    assert not (tmp_path / "test").exists()


def test_an_interface_that_does_not_exist_is_refused_with_those_that_do(
    slurm, small_data, tmp_path
):
    options = ("--launch.interface=ib9", "--launch.doctor=false")
    log = failed(slurm, small_data, tmp_path, options=options)
    assert "error: --launch.interface=ib9 does not exist on node" in log
    assert "there are: lo" in log


def test_missing_data_are_found_by_the_checks_before_the_job(slurm, small_data, tmp_path):
    log = failed(slurm, small_data, tmp_path, options=(f"--data.root={tmp_path}/none",))
    assert "error: the check before the job failed: data" in log
    assert f"{tmp_path}/none" in log


def test_outside_a_job_the_launcher_says_how_to_submit(tmp_path):
    ended = jobs.run(["-m", "launch.slurm", "train"])
    assert ended.codes == [2]
    assert "error: this is not inside a Slurm job; submit it with sbatch slurm/" in ended.text
