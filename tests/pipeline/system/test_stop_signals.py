"""Signals to a command before it listens, and when it no longer does: none changes its code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

from pipeline.system.failure import STOP_SIGNALS

FINISHED, FAILED, STOPPED = 0, 1, 75
NAMES = STOP_SIGNALS[1:]
LEAVE = ("SIGHUP", "SIGINT", "SIGTERM")
COMMAND = """
import atexit, os, signal, sys
from pipeline.system.failure import STOP_SIGNALS, StopSignal, run_command

name, when, rank = sys.argv[1:]
number = signal.Signals[name]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup
os.environ |= {"HOROVOD_RANK": rank, "HOROVOD_SIZE": "2"} if rank else {}

def send(at):
    if at == when:
        os.kill(os.getpid(), number)

def main(_):
    with StopSignal(whole_command=True) as stop:
        send("early")
        stop.hold()
        send("held")
        print("received", STOP_SIGNALS[stop.received], flush=True)
    send("after")

class Late:
    def __del__(self, send=send):
        send("finalising")

late = Late()
atexit.register(send, "exit")
run_command(main, [])
"""


def run(name: str, when: str, rank: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, name, when, rank], env=jobs.environment(), text=True,
        capture_output=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("when", ["after", "exit", "finalising"])
def test_a_signal_after_the_end_does_not_change_the_code(name, when):
    done = run(name, when)
    assert (done.returncode, done.stdout, done.stderr) == (FINISHED, "received \n", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_before_there_is_anything_to_save_leaves_at_once_or_is_remembered(name):
    done = run(name, "early")
    if name in LEAVE:
        assert (done.returncode, done.stdout) == (STOPPED, "")
        assert done.stderr == f"stopped by {name} before the first step; start again\n"
    else:
        assert (done.returncode, done.stdout) == (FINISHED, f"received {name}\n")


TWICE = """
import os, signal, sys
from pipeline.system import failure

def main(_):
    signal.pthread_sigmask(signal.SIG_BLOCK, failure.LATER)  # as launch/slurm/rank.py leaves it
    os.kill(os.getpid(), signal.SIGINT)
    with failure.StopSignal(whole_command=True):
        pass

stopped = failure._stopped_early

def slowly(name):
    os.kill(os.getpid(), signal.SIGTERM)  # from the launcher, when another rank has left
    return stopped(name)

failure._stopped_early = slowly
failure.run_command(main, [])
"""


def test_a_second_signal_does_not_break_the_end_that_a_blocked_one_has_begun():
    done = subprocess.run(
        [sys.executable, "-c", TWICE], env=jobs.environment(), text=True, capture_output=True,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (STOPPED, "")
    assert done.stderr == "stopped by SIGINT before the first step; start again\n"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("SIGINT", STOPPED, "stopped by SIGINT before the first step; start again"),
        ("SIGTERM", FAILED, "ended by the launcher's SIGTERM, most often because another rank "
         "failed; see its lines"),
    ],
)  # fmt: skip
def test_of_several_ranks_the_first_says_so(name, code, words):
    first, second = run(name, "early", "0"), run(name, "early", "1")
    assert (first.returncode, first.stderr) == (code, words + "\n")
    assert (second.returncode, second.stderr) == (code, "")


def test_nobody_who_hears_the_last_line_changes_no_code():
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "SIGTERM", "early", ""], env=jobs.environment(),
        stderr=writing,
    )  # fmt: skip
    os.close(reading)
    os.close(writing)
    assert process.wait(60) == STOPPED


WRONG = """
import os, signal, sys
from pipeline.system import failure

def main(_):
    raise ValueError("a rule")

if sys.argv[1:] == ["ended"]:
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
failure.run_command(main, [])
"""


@pytest.mark.parametrize(
    ("rank", "end", "words"),
    [("0", "", "error: a rule\n"), ("1", "", "error: rank 1: a rule\n"), ("1", "ended", "")],
)
def test_an_error_before_ranks_can_talk_is_said_by_rank_0_or_by_who_has_it_alone(rank, end, words):
    done = subprocess.run(
        [sys.executable, "-c", WRONG, end],
        env=jobs.environment(HOROVOD_RANK=rank, HOROVOD_SIZE="2"), text=True, capture_output=True,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, words)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_that_is_awaited_is_remembered(name):
    done = run(name, "held")
    assert (done.returncode, done.stdout) == (FINISHED, f"received {name}\n")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", STOPPED), ("SIGUSR1", STOPPED)])
def test_a_signal_while_torch_is_loaded_stops_a_training(small_data, tmp_path, name, code):
    job = jobs.start(jobs.train(small_data, tmp_path))
    (process,) = job.processes
    maps = Path(f"/proc/{process.pid}/maps")
    jobs.wait_for(lambda: "libtorch" in maps.read_text(), "torch")
    job.send(signal.Signals[name], 0)
    job.wait()
    assert job.codes == [code], job.text
    assert "Traceback" not in job.text and "error:" not in job.text, job.text
