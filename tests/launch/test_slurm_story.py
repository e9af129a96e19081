"""A run under a real Slurm through all that can happen to it, over Horovod; see slurm_story.py."""

from __future__ import annotations

import json
import shutil
import signal
from types import SimpleNamespace

import pytest
from run_files import curves, metrics
from slurm_story import Story

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def told(slurm, small_data, tmp_path_factory):
    """The run after all its starts."""
    folder = tmp_path_factory.mktemp("story")
    story = Story(slurm, small_data, folder)
    starts = {}

    story.submit(doctor=True)
    story.under_way()
    story.signal("--batch", "--signal=USR1")
    starts["USR1 to the batch script"] = story.ended("PENDING")
    story.under_way()
    story.signal("--signal=USR1")
    starts["USR1 to the ranks"] = story.ended("PENDING")
    story.under_way()
    story.signal_rank(signal.SIGKILL, 0)
    starts["rank 0 killed"] = story.ended()
    story.submit()
    story.under_way()
    story.signal_rank(signal.SIGKILL, 1)  # of the other node
    starts["rank 1 killed"] = story.ended()
    story.submit(HOROVOD_GLOO_TIMEOUT_SECONDS="5")
    story.under_way()
    story.signal_rank(signal.SIGSTOP, 1)
    starts["rank 1 stopped"] = story.ended()
    story.submit()
    story.under_way()
    slurm.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    starts["node down"] = story.ended("PENDING")
    # Slurm may have taken it back already, as the node registers itself again.
    slurm.run("scontrol", "update", "NodeName=node2", "State=RESUME", check=False)
    story.under_way()
    slurm.run("scontrol", "requeue", story.job)
    starts["requeued by hand"] = story.ended("PENDING")
    story.under_way()
    story.signal()
    starts["cancelled"] = story.ended("CANCELLED")
    images = 8 * (story.seen() + 3)
    story.submit("--nodes=1", "--array=1-2%1", epochs=images // 50 + 1)
    story.job += "_2"
    starts["an array on one node"] = story.ended()
    yield SimpleNamespace(path=story.path, starts=starts)
    shutil.rmtree(folder)


ALL = [
    "USR1 to the batch script", "USR1 to the ranks", "rank 0 killed", "rank 1 killed",
    "rank 1 stopped", "node down", "requeued by hand", "cancelled", "an array on one node",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_start_resumes_from_the_last_and_leaves_a_whole_checkpoint(told, name):
    start = told.starts[name]
    assert start.last_step > start.first_step, start.log
    assert start.left == [], "processes left behind"
    if start.first_step:
        assert f"at step {start.first_step}" in start.log


@pytest.mark.parametrize("name", ["USR1 to the batch script", "USR1 to the ranks"])
def test_usr1_saves_at_a_step_boundary_and_requeues(told, name):
    start = told.starts[name]
    assert json.loads(start.said) == {"signal": "SIGUSR1", "step": start.last_step}
    assert start.last_step == start.seen_step, "a signal loses nothing"
    assert "is requeued and will resume" in start.log
    assert start.restarts == 1 + ALL.index(name)
    assert start.cause == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_job_with_the_cause_last(told, rank):
    start = told.starts[f"rank {rank} killed"]
    assert start.state == "FAILED" and start.exit_code == "1:0"
    assert f"rank {rank} (process " in start.cause and "died without a word" in start.cause
    last = [line for line in start.log.splitlines() if line][-2:]
    assert "\n".join(last) + "\n" == start.cause
    assert start.seen_step - start.last_step <= 3, "at most one interval is lost"


def test_a_stopped_rank_is_named_and_goes_with_the_job(told):
    start = told.starts["rank 1 stopped"]
    assert start.state == "FAILED" and start.exit_code == "1:0"
    assert "rank 1 (process " in start.cause and "is stopped" in start.cause


@pytest.mark.parametrize("name", ["requeued by hand", "cancelled"])
def test_a_requeue_by_hand_and_scancel_save_first(told, name):
    start = told.starts[name]
    assert json.loads(start.said) == {"signal": "SIGTERM", "step": start.last_step}
    assert start.last_step == start.seen_step, "a signal loses nothing"


def test_scancel_does_not_requeue(told):
    start = told.starts["cancelled"]
    assert start.state == "CANCELLED" and "requeued" not in start.log
    assert "launch: stopped; start it again to resume from its checkpoint" in start.log


def test_a_lost_node_puts_the_job_back_into_the_queue(told):
    start = told.starts["node down"]
    assert start.restarts == 1
    assert start.seen_step - start.last_step <= 3, "at most one interval is lost"


def test_half_the_ranks_take_the_run_to_its_end(told):
    start = told.starts["an array on one node"]
    assert start.state == "COMPLETED" and start.exit_code == "0:0", start.log
    assert "1 rank on node1 (1)" in start.log and "on 1 rank (cpu)" in start.log


def test_the_next_start_of_an_array_returns_when_the_run_is_finished(told):
    log = told.starts["an array on one node"].log
    assert log.count("launch: job ") == 2
    assert log.index("finished: top-1") < log.index(f"the run in {told.path} is finished: top-1")


def test_the_checks_before_the_job_ran_on_both_nodes(told):
    assert "checks passed on 2 nodes" in told.starts["USR1 to the batch script"].log


def test_metrics_and_curves_have_neither_gap_nor_repeat(told):
    lines = metrics(told.path)
    steps = [line["step"] for line in lines if line["event"] == "train"]
    assert steps == list(range(1, steps[-1] + 1))
    epochs = [line["epoch"] for line in lines if line["event"] == "val"]
    assert epochs == list(range(len(epochs)))
    positions = [step for step, _ in curves(told.path)["train/loss"]]
    assert positions == [8 * step for step in steps]
