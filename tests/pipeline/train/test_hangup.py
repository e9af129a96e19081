"""A terminal that is closed: the job saves and leaves, unless it was started to outlive it."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios

import jobs
import pytest
from jobs import SABOTEUR, resumable, wait_for
from run_files import checkpoint_steps, metrics, newest_checkpoint

from pipeline.system.failure import GO_ON, STOP_SIGNALS, StopSignal
from pipeline.train.folder import RunFolder, Stop

STOPPED = 75


@pytest.fixture
def hangup():
    """Its action as it was, whatever a test sets."""
    before = signal.getsignal(signal.SIGHUP)
    yield signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


def test_a_hangup_is_a_signal_to_stop_and_the_action_before_comes_back(hangup):
    signal.signal(hangup, signal.SIG_DFL)
    with StopSignal() as stop:
        os.kill(os.getpid(), hangup)
        assert STOP_SIGNALS[stop.received] == "SIGHUP"
    assert signal.getsignal(hangup) is signal.SIG_DFL


def test_under_nohup_a_hangup_stays_ignored(hangup):
    signal.signal(hangup, signal.SIG_IGN)
    with StopSignal() as stop:
        os.kill(os.getpid(), hangup)
        assert stop.received == GO_ON
        assert signal.getsignal(hangup) is signal.SIG_IGN
    assert signal.getsignal(hangup) is signal.SIG_IGN


def on_a_terminal() -> None:
    """What a shell does for a program, also where the tests themselves outlive their terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_closing_the_terminal_saves_and_leaves_with_the_code_of_a_stop(small_data, tmp_path):
    run = tmp_path / "test"
    ours, theirs = pty.openpty()
    settings = [*resumable(small_data, tmp_path), "--run.checkpoint_every_steps=null"]
    command = [sys.executable, str(SABOTEUR), "slow-step:0.2:all", *settings]
    with subprocess.Popen(
        command, cwd=jobs.REPOSITORY, env=jobs.environment(), start_new_session=True,
        stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=on_a_terminal,
    ) as job:  # fmt: skip
        os.close(theirs)
        try:
            wait_for(lambda: (run / "metrics.jsonl").exists() and metrics(run), "a line of metrics")
            os.close(ours)
            assert job.wait(jobs.PATIENCE_SEC) == STOPPED
        finally:
            job.kill()
    last = checkpoint_steps(run)[-1]
    assert 0 < last < 19
    assert newest_checkpoint(run)["step"] == last
    assert RunFolder(run).stopped() == Stop("SIGHUP", last)
    assert not (run / "failure.txt").exists()
    assert f"stopped before step {last} by SIGHUP; start again" in (run / "log.txt").read_text()
