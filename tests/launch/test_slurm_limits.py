"""A job's time limit, with and without a warning before it; a folder that nodes do not share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import jobs
import pytest
import slurm_cluster
from jobs import wait_for
from run_files import metrics, newest_checkpoint

from pipeline.train.folder import RunFolder, Stop

pytestmark = pytest.mark.slurm


def submit(slurm, data: Path, runs: Path, *sbatch: str, doctor: bool = False) -> str:
    """The script for 64 GPUs, small and endless."""
    return slurm.submit(
        "--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=1",
        f"--output={runs}.log", *sbatch, str(jobs.REPOSITORY / "slurm" / "resnet152_64gpu.sh"),
        *jobs.small_settings(data, runs)[2:], "--data.dataset=null",
        "--schedule.epochs=10000",
        "--run.log_every_steps=1", f"--launch.doctor={str(doctor).lower()}", cwd=jobs.REPOSITORY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def limited(slurm, small_data, tmp_path_factory):
    """Two jobs of one minute at the same time: (folder of the run, Slurm's record, log) of each.

    The script asks for a warning five minutes before the limit, which here is at once: Slurm looks
    every 30 s. The other job gets a harmless signal in its place.
    """
    folder = tmp_path_factory.mktemp("limits")
    runs = {"warned": folder / "warned", "unwarned": folder / "unwarned"}
    warned = submit(slurm, small_data, runs["warned"], "--nodes=1", "--time=1")
    unwarned = submit(
        slurm, small_data, runs["unwarned"], "--nodes=1", "--time=1", "--signal=URG@1"
    )
    wait_for(lambda: slurm.job(warned)["Restarts"] == "1", "the warning before the limit", 150)
    found = {"warned": slurm.job(warned)}
    slurm.run("scancel", warned)
    slurm.wait_for_end(unwarned, "TIMEOUT", timeout_sec=180)
    found["unwarned"] = slurm.job(unwarned)
    yield {
        name: (path / "test", found[name], Path(f"{path}.log").read_text())
        for name, path in runs.items()
    }
    shutil.rmtree(folder)


def test_a_warning_before_the_limit_saves_and_requeues(limited):
    run, job, log = limited["warned"]
    assert job["Restarts"] == "1"
    assert "is requeued and will resume" in log
    last = newest_checkpoint(run)["step"]
    assert RunFolder(run).stopped() == Stop("SIGUSR1", last)
    lines = metrics(run)  # none on a busy machine, where the warning may come before step 0
    assert (lines[-1]["step"] if lines else 0) == last


def test_the_limit_itself_leaves_a_checkpoint_and_no_requeue(limited):
    run, job, log = limited["unwarned"]
    assert job["Restarts"] == "0"
    assert "DUE TO TIME LIMIT" in log
    last = newest_checkpoint(run)["step"]
    assert RunFolder(run).stopped() == Stop("SIGTERM", last)
    assert metrics(run)[-1]["step"] == last and "requeued" not in log


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a node a disk of its own")
def test_a_run_directory_that_the_nodes_do_not_share_is_found(small_data, tmp_path):
    if missing := slurm_cluster.missing_programs():
        pytest.skip(f"needs Slurm, and {', '.join(missing)} is not here: slurm-wlm has it")
    private = tmp_path / "own"
    private.mkdir()
    with slurm_cluster.cluster(tmp_path / "cluster", private=private) as slurm:
        job = submit(slurm, small_data, private / "runs", "--nodes=2", doctor=True)
        assert slurm.wait_for_end(job) == "FAILED"
        assert slurm.job(job)["ExitCode"] == "2:0"
        log = Path(f"{private}/runs.log").read_text()
    assert "error: the check before the job failed: run directory" in log
    assert "node2" in log and "run.dir" in log
