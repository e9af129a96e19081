"""Ranks that meet before Horovod starts, over a real rendezvous; none of them loads torch."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jobs
import pytest

from pipeline.ranks.local import start_ranks
from pipeline.ranks.rendezvous import start_timeout_sec

COME = (
    "from pipeline.ranks.rendezvous import check_in; "
    "from pipeline.system.failure import run_command; "
)
ENTER = COME + "run_command(lambda _: check_in(), [])"


def meet(ranks: int, absent: int | None, **env: str) -> tuple[list[int], list[str]]:
    """Exit codes and outputs by rank of a job in which rank `absent` ends before it comes."""
    stay = f"import os, sys; os.environ['HOROVOD_RANK'] == '{absent}' and sys.exit(9); "
    started = start_ranks(
        [sys.executable, "-c", stay + ENTER], ranks, jobs.environment(**env),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=jobs.REPOSITORY,
    )  # fmt: skip
    with started:
        outputs = [process.communicate(timeout=60.0)[0] for process in started.processes]
        return [process.returncode for process in started.processes], outputs


@pytest.fixture(scope="module")
def met():
    """What `meet` returns for each rank that may be absent, all at once: they mostly wait."""
    with ThreadPoolExecutor() as pool:
        found = {a: pool.submit(meet, 3, a, HOROVOD_START_TIMEOUT="2") for a in (None, 0, 2)}
    return {absent: job.result() for absent, job in found.items()}


def test_ranks_that_all_come_go_on(met):
    assert met[None] == ([0, 0, 0], ["", "", ""])


def test_rank_0_names_who_did_not_start(met):
    codes, outputs = met[2]
    assert codes == [1, 1, 9]
    assert outputs[0] == (
        "error: rank 0: rank 2 of 3 did not start within 2 s; see what the launcher and that node "
        "say, or allow more time with HOROVOD_START_TIMEOUT (in seconds)\n"
    )
    assert outputs[1] == "rank 1 ends because rank 2 did not start\n"


def test_the_next_rank_speaks_when_rank_0_did_not_start(met):
    codes, outputs = met[0]
    assert codes == [9, 1, 1]
    assert outputs[1].startswith("error: rank 1: rank 0 of 3 did not start within 2 s; ")
    assert outputs[2] == "rank 2 ends because rank 0 did not start\n"


def test_a_rendezvous_that_is_gone_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = jobs.environment(
        HOROVOD_RANK="0", HOROVOD_SIZE="2", HOROVOD_START_TIMEOUT="1",
        HOROVOD_GLOO_RENDEZVOUS_ADDR="127.0.0.1", HOROVOD_GLOO_RENDEZVOUS_PORT=str(port),
    )  # fmt: skip
    rank = subprocess.run(
        [sys.executable, "-c", ENTER], env=env, text=True, capture_output=True, timeout=60
    )
    assert rank.returncode == 1
    said = f"error: rank 0: the launcher's rendezvous at 127.0.0.1:{port} cannot be reached ("
    assert rank.stderr.startswith(said), rank.stderr


@pytest.mark.parametrize("value", ["0", "-1", "ten", ""])
def test_a_bad_time_limit_is_refused(monkeypatch, value):
    monkeypatch.setenv("HOROVOD_START_TIMEOUT", value)
    with pytest.raises(ValueError, match=f"HOROVOD_START_TIMEOUT={value} must be a whole number"):
        start_timeout_sec()
