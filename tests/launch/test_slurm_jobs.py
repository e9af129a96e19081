"""Short jobs on a real Slurm: where srun puts the ranks, every script, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jobs
import pytest
from run_files import metrics

pytestmark = pytest.mark.slurm

# The launcher's own steps, up to the program, which here says where it is.
_LAUNCH = """\
import os, sys
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)
from launch.slurm.allocation import require_rank_per_gpu, this_allocation
from pipeline.ranks.local import open_rendezvous
from launch.slurm.__main__ import Relay
from launch.slurm.allocation import layout, one_per_node, one_per_node_environment
from launch.slurm.container import srun
from launch.slurm.rank import ENGINE, NODES
allocation = this_allocation(os.environ)
require_rank_per_gpu(allocation)
server = open_rendezvous(sys.argv[1], allocation.nodes[0].address, allocation.hosts)
env = {**os.environ, **server.shared_environment, NODES: allocation.to_json(), ENGINE: sys.argv[1]}
command = srun(layout(allocation), ["launch.slurm.rank", "place"])
Relay().run(srun(one_per_node(allocation), ["place"]),
            one_per_node_environment(env))
sys.exit(Relay().run(command, env))
"""


def places(
    slurm, tmp_path: Path, *sbatch: str, engine: str = "horovod"
) -> tuple[list[dict[str, str]], ...]:
    """The environment of every rank of a job submitted with `sbatch`, by rank; and of the one task
    of each node that looks at it before the ranks start, by node."""
    paths = [str(jobs.REPOSITORY), str(jobs.REPOSITORY / "tests")]
    (tmp_path / "launch_places.py").write_text(_LAUNCH.replace("PATHS", repr(paths)))
    log = tmp_path / "job.log"
    job = slurm.submit(
        f"--output={log}", *sbatch, f"--wrap={sys.executable} {tmp_path}/launch_places.py {engine}",
        cwd=jobs.REPOSITORY,
    )  # fmt: skip
    assert slurm.wait_for_end(job) == "COMPLETED", log.read_text()
    found = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    rank = {"horovod": "HOROVOD_RANK", "torch": "RANK"}[engine]
    nodes = [place for place in found if rank not in place]
    ranks = [place for place in found if rank in place]
    return (
        sorted(ranks, key=lambda place: int(place[rank])),
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
    # Which two a node gives depends on whether the job before has quite left it.
    given = [place["CUDA_VISIBLE_DEVICES"].split(",") for place in nodes]
    assert [len(one) for one in given] == [2, 2]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in found] == [*given[0], *given[1]]
    assert [place["HOROVOD_LOCAL_RANK"] for place in found] == ["0", "1", "0", "1"]


def test_uneven_nodes_count_their_ranks_node_by_node(slurm, tmp_path):
    found, _ = places(slurm, tmp_path, "--nodes=2", "--ntasks=3", "--export=NONE")
    assert layout_of(found) == [
        ("node1", "0", "0/2"), ("node1", "1", "0/1"), ("node2", "0", "1/2")
    ]  # fmt: skip


def test_ranks_of_torch_count_and_meet_likewise(slurm, tmp_path):
    found, _ = places(slurm, tmp_path, "--nodes=2", "--ntasks=3", engine="torch")
    names = ("SLURMD_NODENAME", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert [tuple(place[name] for name in names) for place in found] == [
        ("node1", "0", "3", "0", "2"), ("node1", "1", "3", "1", "2"), ("node2", "2", "3", "0", "1")
    ]  # fmt: skip
    assert {place["GLOO_SOCKET_IFNAME"] for place in found} == {"lo"}
    assert {place["MASTER_ADDR"] for place in found} == {"127.0.0.1"}
    assert len({place["MASTER_PORT"] for place in found}) == 1
    assert {place["TORCHELASTIC_USE_AGENT_STORE"] for place in found} == {"True"}
    assert not any(name.startswith("HOROVOD_") for place in found for name in place)


TWO_RANKS = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2")


def ended(slurm, log, script, *arguments, sbatch=TWO_RANKS, state="COMPLETED") -> str:
    """The log of a job of slurm/<script>.sh, which ends in this state; FAILED is with code 2."""
    job = slurm.submit(
        "--cpus-per-task=1", f"--output={log}", "--open-mode=truncate", *sbatch,
        str(jobs.REPOSITORY / "slurm" / f"{script}.sh"), *arguments, cwd=jobs.REPOSITORY,
    )  # fmt: skip
    assert slurm.wait_for_end(job) == state, log.read_text()
    assert slurm.job(job)["ExitCode"] == ("2:0" if state == "FAILED" else "0:0"), log.read_text()
    return log.read_text()


def test_data_are_prepared_staged_to_each_node_and_a_checkpoint_evaluated(slurm, tmp_path):
    data, near, runs = tmp_path / "far", tmp_path / "near", tmp_path / "runs"
    log = tmp_path / "job.log"

    sizes = ("--train", "20", "--val", "10")
    ended(slurm, log, "prepare", "demo", "--out", str(data), *sizes, sbatch=("--nodes=1",))
    assert len(list(data.rglob("*.JPEG"))) == 30

    settings = [*jobs.small_settings(data, runs)[2:], "--data.dataset=null"]
    settings += ["--schedule.epochs=1", "--schedule.drop_epochs=[]", f"--launch.stage={near}"]
    said = ended(slurm, log, "resnet152_64gpu", *settings)
    assert "checks passed on 1 node" in said
    assert f"root: {near}" in (runs / "test" / "config.yaml").read_text()
    assert len(list(near.rglob("*.JPEG"))) == 30

    best = runs / "test" / "checkpoints" / "best.pt"
    said = ended(slurm, log, "evaluate", "--checkpoint", str(best))
    (val,) = (line for line in metrics(runs / "test") if line["event"] == "val")
    assert f"top-1 {val['top1']:.2%}" in said


def test_a_failed_evaluation_ends_with_its_code_and_says_that_the_cause_is_above(slurm, tmp_path):
    options = ("--checkpoint", "none.pt", "--launch.doctor=false")
    said = ended(slurm, tmp_path / "job.log", "evaluate", *options, state="FAILED")
    assert "error: --checkpoint none.pt does not exist" in said
    assert "srun ended with code 2; the cause is above" in said


@pytest.mark.parametrize(
    ("sbatch", "options", "parts"),
    [
        (("--gpus-per-node=8",), (), ["node1 has 8 GPUs in this job and 1 rank; submit with one"]),
        (
            (),
            ("--launch.interface=ib9", "--launch.doctor=false"),
            ["--launch.interface=ib9 does not exist on node", "there are: lo"],
        ),
        (
            (),
            ("--data.root=none",),
            ["the check before the job failed: data", "data directory none does not"],
        ),
    ],
)
def test_a_training_that_cannot_start_is_refused(
    slurm, small_data, tmp_path, sbatch, options, parts
):
    settings = [*jobs.small_settings(small_data, tmp_path)[2:], "--data.dataset=null", *options]
    sbatch = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", *sbatch)
    said = ended(
        slurm, tmp_path / "job.log", "resnet152_64gpu", *settings, state="FAILED", sbatch=sbatch
    )
    assert "error: " in said and all(part in said for part in parts), said
    assert not (tmp_path / "test" / "metrics.jsonl").exists()


def test_a_heterogeneous_job_is_refused(slurm, small_data, tmp_path):
    """Its environment describes the first component alone."""
    log, settings = tmp_path / "job.log", jobs.small_settings(small_data, tmp_path)[2:]
    script = jobs.REPOSITORY / "slurm" / "resnet152_64gpu.sh"
    one = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
    job = slurm.submit(
        *one, f"--output={log}", ":", *one, str(script), *settings, cwd=jobs.REPOSITORY
    )
    assert slurm.wait_for_end(job) == "FAILED", log.read_text()
    assert f"error: job {job} is heterogeneous, with 2 components, and ranks" in log.read_text()
    assert not (tmp_path / "test").exists()


def test_outside_a_job_the_launcher_says_how_to_submit():
    refused = jobs.run(["-m", "launch.slurm", "train"])
    assert refused.codes == [2]
    assert "error: this is not inside a Slurm job; submit it with sbatch slurm/" in refused.text
