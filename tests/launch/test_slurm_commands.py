"""All scripts on a real Slurm: data prepared, staged, trained on, and the result evaluated."""

from __future__ import annotations

import jobs
import pytest
from run_files import metrics

pytestmark = pytest.mark.slurm


def test_data_are_prepared_staged_to_each_node_and_a_checkpoint_evaluated(slurm, tmp_path):
    data, near, runs = tmp_path / "far", tmp_path / "near", tmp_path / "runs"
    log = tmp_path / "job.log"

    def run(script: str, *options: str) -> str:
        job = slurm.submit(
            "--nodes=1", "--cpus-per-task=1", f"--output={log}", "--open-mode=truncate",
            *options, cwd=jobs.REPOSITORY,
        )  # fmt: skip
        state = slurm.wait_for_end(job)
        assert state == "COMPLETED", f"{script}: {log.read_text()}"
        return log.read_text()

    scripts = jobs.REPOSITORY / "slurm"
    sizes = ("--train", "20", "--val", "10")
    run("prepare", "--ntasks=1", str(scripts / "prepare.sh"), "demo", "--out", str(data), *sizes)
    assert len(list(data.rglob("*.JPEG"))) == 30

    two = ("--ntasks-per-node=2", "--gpus-per-node=2")
    said = run(
        "train", *two, str(scripts / "resnet152_64gpu.sh"),
        *jobs.small_settings(data, runs)[2:], "--schedule.epochs=1",
        "--schedule.drop_epochs=[]", f"--launch.stage={near}", "--data.dataset=null",
    )  # fmt: skip
    assert "checks passed on 1 node" in said
    assert f"root: {near}" in (runs / "test" / "config.yaml").read_text()
    assert len(list(near.rglob("*.JPEG"))) == 30

    best = runs / "test" / "checkpoints" / "best.pt"
    said = run("evaluate", *two, str(scripts / "evaluate.sh"), "--checkpoint", str(best))
    (val,) = (line for line in metrics(runs / "test") if line["event"] == "val")
    assert f"top-1 {val['top1']:.4f}" in said


def test_a_failed_evaluation_ends_with_its_code_and_says_that_the_cause_is_above(slurm, tmp_path):
    log = tmp_path / "job.log"
    job = slurm.submit(
        "--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1",
        f"--output={log}", str(jobs.REPOSITORY / "slurm" / "evaluate.sh"),
        "--checkpoint", "none.pt", "--launch.doctor=false", cwd=jobs.REPOSITORY,
    )  # fmt: skip
    assert slurm.wait_for_end(job) == "FAILED"
    assert slurm.job(job)["ExitCode"] == "2:0", log.read_text()
    assert "error: --checkpoint none.pt does not exist" in log.read_text()
    assert "srun ended with code 2; the cause stands above" in log.read_text()
