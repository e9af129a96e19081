"""Ranks on this machine: their environment, their exit codes, and their end."""

import os
import subprocess
import sys
import time

import pytest

from pipeline.ranks.local import start_ranks

CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("HOROVOD_")}
WHO = (
    "import os, sys; names = ('RANK', 'SIZE', 'LOCAL_RANK');"
    "print(*(os.environ.get('HOROVOD_' + name) for name in names));"
    "sys.exit(3 + int(os.environ.get('HOROVOD_RANK', 0)))"
)


def test_each_rank_learns_its_place_and_keeps_its_exit_code():
    argv = [sys.executable, "-c", WHO]
    with start_ranks(argv, 3, CLEAN, stdout=subprocess.PIPE) as ranks:
        said = [process.communicate(timeout=60)[0].split() for process in ranks.processes]
        assert ranks.stop() == [3, 4, 5]
    assert said == [[str(rank), "3", str(rank)] for rank in range(3)]


def test_one_rank_is_alone_and_hears_nothing_of_horovod():
    argv = [sys.executable, "-c", WHO]
    with start_ranks(argv, 1, CLEAN, stdout=subprocess.PIPE) as ranks:
        assert ranks.processes[0].communicate(timeout=60)[0].split() == ["None"] * 3


def test_stop_ends_ranks_that_ignore_sigterm():
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(600)"
    )
    ranks = start_ranks([sys.executable, "-c", script], 2, CLEAN, stdout=subprocess.PIPE)
    for process in ranks.processes:
        assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    assert ranks.stop(patience_sec=0.2) == [-9, -9]
    assert time.monotonic() - started < 60


def test_a_program_that_does_not_exist_leaves_no_rank_behind():
    with pytest.raises(FileNotFoundError):
        start_ranks(["/no/such/program"], 2, CLEAN)
