"""Ranks that hang where there is no run's folder, as in an evaluation: told on one line."""

import re
import shutil
from pathlib import Path

import jobs
import pytest

HANG = """
import socket, sys, time
from pipeline.ranks import addresses, connect
from pipeline.ranks.reports import Limit
from pipeline.ranks.watchdog import watched
from pipeline.system.failure import run_command
from pipeline.system.launched import launched

if sys.argv[1:] == ["apart"]:  # each rank takes itself to be on a host of its own
    socket.gethostname = lambda: f"node{launched().rank}"
    addresses.resolves = lambda _: True

def main(_):
    world = connect()
    with watched(world, Limit(2.0, "run.start_timeout_sec", "start again")):
        world.heartbeat.beat("evaluate")
        if world.rank == 1:
            time.sleep(60.0)
        world.barrier()

run_command(main, [])
"""


@pytest.mark.parametrize("apart", ["", "apart"])
def test_who_hangs_is_told_once_with_the_stacks_in_the_temporary_folder(tmp_path, apart):
    ranks = jobs.start(["-c", HANG, *filter(None, [apart])], 2, "torch", TMPDIR=str(tmp_path))
    if apart:  # who hangs speaks and leaves first, and a launcher ends the other
        ranks.processes[1].wait(jobs.PATIENCE_SEC)
        ranks.processes[0].kill()
    ranks.wait()
    assert ranks.codes[1] == 1, ranks.text
    (error,) = re.findall(r"^error: .*", ranks.text, re.MULTILINE)
    speaker, host = (1, "node1") if apart else (0, r"\S+")
    found = re.search(
        rf"^error: rank {speaker}: no progress within run\.start_timeout_sec=2: rank 1 \(process "
        rf"{ranks.processes[1].pid}\) on {host} has been in phase evaluate of step 0 for \d+ s "
        r"\(stack in (\S+)\)",
        error,
    )
    assert found, error
    assert "in main" in Path(found[1]).read_text()
    assert Path(found[1]).is_relative_to(tmp_path)
    shutil.rmtree(tmp_path)
