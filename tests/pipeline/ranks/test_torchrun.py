"""Ranks under torchrun: failures inside a job, nodes that leave and come, as its agents see them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import jobs
import pytest
from run_files import metrics, state_differences

from pipeline.train.folder import RunFolder

NODES = ("--rdzv-backend=c10d", "--rdzv-conf=last_call_timeout=2,keep_alive_interval=1")
SLOW = "slow-step:0.15:all"  # so that a kill falls among the steps


def agent(*options: str, argv: list[str]) -> subprocess.Popen[str]:
    """Starts `torchrun options argv`, as a user does."""
    command = [shutil.which("torchrun") or "torchrun", "--monitor-interval=0.1", *options, *argv]
    env = jobs.environment(GLOO_SOCKET_IFNAME="lo")
    return subprocess.Popen(command, env=env, text=True, **jobs.POPEN)


def ranks_of(torchrun: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks that an agent has started, by local rank."""
    found = []
    for line in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        environment = Path(f"/proc/{line}/environ").read_text().split("\0")
        rank = next((e for e in environment if e.startswith("LOCAL_RANK=")), None)
        if rank is not None:
            found.append((int(rank.partition("=")[2]), int(line)))
    return [pid for _, pid in sorted(found)]


def starts(run: Path) -> list[dict]:
    """The run's starts so far, as its metrics name them."""
    lines = RunFolder(run).lines() if (run / "metrics.jsonl").exists() else []
    return [line for line in lines if line["event"] == "start"]


def next_line(run: Path, begun: int) -> None:
    """Waits until start number `begun` of the run has written a line of metrics."""

    def written() -> bool:
        lines = RunFolder(run).lines() if (run / "metrics.jsonl").exists() else []
        at = [n for n, line in enumerate(lines) if line["event"] == "start"]
        return len(at) >= begun and len(lines) > at[begun - 1] + 1

    jobs.wait_for(written, f"a line of metrics of start {begun}")


def require_no_gap(run: Path, uninterrupted: Path) -> None:
    """Asserts that a run has the bits and the curves of the one that nothing interrupted."""
    assert state_differences(run, uninterrupted) == []
    found, wanted = (
        [line for line in metrics(one) if line["event"] != "start"] for one in (run, uninterrupted)
    )
    assert found == wanted


def test_a_killed_rank_restarts_all_and_the_run_goes_on(small_data, tmp_path, uninterrupted):
    run = tmp_path / "test"
    argv = [str(jobs.SABOTEUR), SLOW, *jobs.resumable(small_data, tmp_path)]
    job = agent("--standalone", "--nproc-per-node=2", "--max-restarts=3", argv=argv)
    try:
        for begun, local_rank in ((1, 1), (2, 0)):
            next_line(run, begun)
            os.kill(ranks_of(job)[local_rank], signal.SIGKILL)
        text = jobs.finish(job)
    finally:
        job.kill()
    assert job.returncode == 0, text
    assert [line["ranks"] for line in starts(run)] == [2, 2, 2]
    assert len(re.findall("resuming from .*/step-", text)) == 2, text
    assert not (run / "failure.txt").exists()
    require_no_gap(run, uninterrupted)


def test_a_lost_node_leaves_and_comes_back(small_data, tmp_path, uninterrupted):
    run = tmp_path / "test"
    argv = [str(jobs.SABOTEUR), SLOW, *jobs.resumable(small_data, tmp_path)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    options = ("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", *NODES, endpoint)
    first = agent(*options, argv=argv)  # holds the rendezvous
    second = agent(*options, argv=argv)
    agents = [first, second]
    try:
        next_line(run, 1)
        for pid in [second.pid, *ranks_of(second)]:
            os.kill(pid, signal.SIGKILL)
        next_line(run, 2)
        agents.append(agent(*options, argv=argv))
        text = jobs.finish(first)
    finally:
        for one in agents:
            one.kill()
            one.wait()
    assert first.returncode == 0, text
    assert [line["ranks"] for line in starts(run)] == [2, 1, 2], text
    require_no_gap(run, uninterrupted)
