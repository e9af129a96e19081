"""A run under a real Slurm over torch.distributed, and on over Horovod; see slurm_story.py."""

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
    story = Story(slurm, small_data, folder, "--launch.engine=torch")
    starts = {}

    story.submit(doctor=True)
    story.under_way()
    story.signal("--batch", "--signal=USR1")
    starts["USR1"] = story.ended("PENDING")
    story.under_way()
    story.signal_rank(signal.SIGKILL, 1)  # of the other node
    starts["rank 1 killed"] = story.ended()
    images = 8 * (story.seen() + 3)
    story.submit("--launch.engine=horovod", epochs=images // 50 + 1)
    starts["over Horovod"] = story.ended()
    yield SimpleNamespace(path=story.path, starts=starts)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["USR1", "rank 1 killed", "over Horovod"])
def test_every_start_resumes_from_the_last_whatever_the_engine(told, name):
    start = told.starts[name]
    assert start.last_step > start.first_step, start.log
    assert start.left == [], "processes left behind"
    if start.first_step:
        assert f"at step {start.first_step}" in start.log


def test_both_nodes_are_checked_and_usr1_saves_and_requeues(told):
    start = told.starts["USR1"]
    assert "checks passed on 2 nodes" in start.log
    assert json.loads(start.said) == {"signal": "SIGUSR1", "step": start.last_step}
    assert start.last_step == start.seen_step, "a signal loses nothing"
    assert "is requeued and will resume" in start.log and start.restarts == 1


def test_a_killed_rank_ends_the_job_with_the_cause_last(told):
    start = told.starts["rank 1 killed"]
    assert start.state == "FAILED" and start.exit_code == "1:0"
    assert "rank 1 (process " in start.cause and "died without a word" in start.cause
    last = [line for line in start.log.splitlines() if line][-2:]
    assert "\n".join(last) + "\n" == start.cause
    assert start.seen_step - start.last_step <= 3, "at most one interval is lost"


def test_the_other_engine_takes_the_run_to_its_end_without_gap_or_repeat(told):
    start = told.starts["over Horovod"]
    assert start.state == "COMPLETED" and start.exit_code == "0:0", start.log
    steps = [line["step"] for line in metrics(told.path) if line["event"] == "train"]
    assert steps == list(range(1, steps[-1] + 1))
    assert [step for step, _ in curves(told.path)["train/loss"]] == [8 * step for step in steps]
