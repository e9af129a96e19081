"""Jobs of a real Slurm in containers, each in a root of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import jobs
import pytest
from slurm_story import Story

STAND_IN = Path(__file__).with_name("apptainer.sh")

can_isolate = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, for a container"
)


def image_in(slurm, folder: Path) -> dict[str, str]:
    """Makes an "image" in a folder; the environment in which its runtime is found."""
    (folder / "bin").mkdir()
    (folder / "bin" / "apptainer").symlink_to(STAND_IN)
    (folder / "trainyard.sif").touch()
    python = Path(sys.executable)
    holds = {sys.prefix, sys.base_prefix, str(python.resolve().parents[1])}
    return {
        "IMAGE_HOLDS": ":".join(sorted(holds)),
        "IMAGE_PATH": f"{python.parent}:/usr/bin:/bin",
        "PATH": f"{folder / 'bin'}:{slurm.env()['PATH']}",
    }


@pytest.fixture(scope="module")
def contained(slurm, small_data, tmp_path_factory):
    """A run of two nodes in a container: warned, requeued, and ended by a killed rank."""
    folder = tmp_path_factory.mktemp("contained")
    env = image_in(slurm, folder)
    options = (f"--launch.container={folder}/trainyard.sif", "--run.device=cpu")
    story = Story(slurm, small_data, folder, *options)
    story.submit(doctor=True, **env)
    story.under_way()
    story.signal("--batch", "--signal=USR1")
    warned = story.ended("PENDING")
    story.under_way()
    story.signal_rank(signal.SIGKILL, 1)
    yield warned, story.ended()
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.slurm
@can_isolate
def test_a_job_in_a_container_is_checked_trains_saves_and_is_requeued(contained):
    start, _ = contained
    assert "checks passed on 2 nodes" in start.log, start.log
    assert "is requeued and will resume" in start.log and start.restarts == 1
    assert start.last_step == start.seen_step > 0, "a signal reaches ranks in containers"
    assert start.left == []


@pytest.mark.slow
@pytest.mark.slurm
@can_isolate
def test_a_requeued_job_in_a_container_resumes_and_names_a_killed_rank(contained):
    first, start = contained
    assert start.first_step == first.last_step and f"at step {start.first_step}" in start.log
    assert start.state == "FAILED" and start.exit_code == "1:0"
    assert "rank 1 (process " in start.cause and start.left == []


def without_gpus(slurm, data: Path, folder: Path, *options: str) -> str:
    """The log of a job of two ranks whose container shows none of its GPUs, which fails."""
    env = image_in(slurm, folder)
    log, script = folder / "job.log", jobs.REPOSITORY / "slurm" / "resnet50_8gpu.sh"
    job = slurm.submit(
        "--cpus-per-task=1", "--ntasks-per-node=2", "--gpus-per-node=2", f"--output={log}",
        str(script), *jobs.small_settings(data, folder / "runs")[2:], *options,
        f"--launch.container={folder}/trainyard.sif", cwd=jobs.REPOSITORY, **env,
    )  # fmt: skip
    assert slurm.wait_for_end(job) == "FAILED", log.read_text()
    return log.read_text()


@pytest.mark.slow
@pytest.mark.slurm
@can_isolate
def test_ranks_in_a_container_without_the_jobs_gpus_do_not_train_on_cores(
    slurm, small_data, tmp_path
):
    """They have met before, at a server that runs beside them without a GPU."""
    options = ("--launch.doctor=false", "--data.dataset=null", "--data.area=[0.35,1.0]")
    text = without_gpus(slurm, small_data, tmp_path, *options)
    first, _ = text.splitlines()[-2:]
    assert first.startswith("error: Slurm gave this job GPUs on "), text
    assert "the container shows none of them; start it with --nv" in first


@pytest.mark.slurm
@can_isolate
def test_a_container_without_the_jobs_gpus_is_refused_by_the_doctor(slurm, small_data, tmp_path):
    text = without_gpus(slurm, small_data, tmp_path)
    assert "apptainer: --nv" in text
    assert "fail  GPUs  Slurm's GPUs are not in the container" in text
    assert "-> Start it with --nv on a host whose nvidia-smi lists them" in text
    assert text.splitlines()[-1].startswith("error: the check before the job failed: GPUs; ")
