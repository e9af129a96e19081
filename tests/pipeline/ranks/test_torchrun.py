"""Ranks under torchrun: failures inside a job, and nodes that leave and come back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import jobs
from run_files import metrics, state_differences

from pipeline.train.folder import RunFolder

NODES = ("--rdzv-backend=c10d", "--rdzv-conf=last_call_timeout=2,keep_alive_interval=1")
# Without it, a node that joins later waits for an address that nobody writes (torch 2.13).
JOINING = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SLOW = "slow-step:0.15:all"  # so that a kill falls among the steps


def agent(*options: str, argv: list[str]) -> subprocess.Popen[str]:
    """Starts `torchrun options argv`, as a user does."""
    command = [shutil.which("torchrun") or "torchrun", "--monitor-interval=0.1", *options, *argv]
    env = jobs.environment(GLOO_SOCKET_IFNAME="lo", **JOINING)
    return subprocess.Popen(command, env=env, text=True, **jobs.POPEN)


def listens(port: int) -> bool:
    """Whether a program takes connections at a port of this machine."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def ranks_of(torchrun: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks that an agent has started, by local rank."""
    found = []
    for line in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        environment = Path(f"/proc/{line}/environ").read_text().split("\0")
        rank = next((e for e in environment if e.startswith("LOCAL_RANK=")), None)
        if rank is not None:
            found.append((int(rank.partition("=")[2]), int(line)))
    return [pid for _, pid in sorted(found)]


def lines(run: Path) -> list[dict]:
    """The lines of a run's metrics so far."""
    return RunFolder(run).lines() if (run / "metrics.jsonl").exists() else []


def starts(run: Path) -> list[int]:
    """The number of ranks at each start of the run so far."""
    return [line["ranks"] for line in lines(run) if line["event"] == "start"]


def wait_for_training(run: Path, *ranks: int) -> None:
    """Waits until the last starts of the run had as many `ranks`, and the last has trained."""

    def trained() -> bool:
        return starts(run)[-len(ranks) :] == [*ranks] and lines(run)[-1]["event"] != "start"

    jobs.wait_for(trained, f"training by {ranks[-1]} ranks")


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
        for killed, local_rank in ((1, 1), (2, 0)):
            wait_for_training(run, *[2] * killed)
            os.kill(ranks_of(job)[local_rank], signal.SIGKILL)
        text = jobs.finish(job)
    finally:
        job.kill()
    assert job.returncode == 0, text
    assert starts(run) == [2, 2, 2]
    assert len(re.findall("resuming from .*/step-", text)) == 2, text
    assert not (run / "failure.txt").exists()
    require_no_gap(run, uninterrupted)


def test_a_lost_node_leaves_and_comes_back(small_data, tmp_path, uninterrupted):
    run = tmp_path / "test"
    argv = [str(jobs.SABOTEUR), SLOW, *jobs.resumable(small_data, tmp_path)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"--rdzv-endpoint=127.0.0.1:{port}"
    options = ("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", *NODES, endpoint)
    first = agent(*options, argv=argv)
    jobs.wait_for(lambda: listens(port), "the first agent, which holds the rendezvous")
    second = agent(*options, argv=argv)
    agents = [first, second]
    try:
        wait_for_training(run, 2)
        second.kill()  # its rank goes with it
        wait_for_training(run, 2, 1)
        agents.append(agent(*options, argv=argv))
        text = jobs.finish(first)
    finally:
        for one in agents:
            one.kill()
            one.wait()
    assert first.returncode == 0, text
    assert starts(run)[-3:] == [2, 1, 2], text
    require_no_gap(run, uninterrupted)


def test_a_lone_rank_ends_with_its_torchrun(small_data, tmp_path):
    argv = [str(jobs.SABOTEUR), SLOW, *jobs.resumable(small_data, tmp_path)]
    job = agent("--standalone", "--nproc-per-node=1", argv=argv)
    try:
        wait_for_training(tmp_path / "test", 1)
        (rank,) = ranks_of(job)
        job.kill()
        jobs.wait_for(lambda: not Path(f"/proc/{rank}").exists(), "the rank's end", 10.0)
        jobs.finish(job)
    finally:
        job.kill()
    assert [line["event"] for line in lines(tmp_path / "test")].count("done") == 0
