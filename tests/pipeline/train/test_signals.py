"""How a job ends: signals, a terminal that closes, a loss that is not a number, wrong input, and a
run in use."""

import contextlib
import faulthandler
import fcntl
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
import torch
from jobs import SABOTEUR, resumable, small_settings, train, wait_for
from one_process import train_here
from run_files import checkpoint_steps, metrics, newest_checkpoint, state_differences

from pipeline.config import ConfigError, RunConfig
from pipeline.system.failure import GO_ON, STOP_SIGNALS, Reported, StopSignal
from pipeline.system.launched import Engine
from pipeline.train.folder import RunFolder, Stop
from pipeline.train.run import against_expectation

FINISHED, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75


@contextlib.contextmanager
def action_kept(number: signal.Signals):
    """The signal's action as it was, whatever the body sets."""
    before = signal.getsignal(number)
    yield
    signal.signal(number, before)


@pytest.mark.parametrize("name", STOP_SIGNALS[1:])
def test_a_signal_to_stop_is_remembered_and_the_action_before_comes_back(name):
    number = signal.Signals[name]
    with action_kept(number):
        signal.signal(number, signal.SIG_DFL)
        with StopSignal() as stop:
            os.kill(os.getpid(), number)
            assert STOP_SIGNALS[stop.received] == name
        assert signal.getsignal(number) is signal.SIG_DFL


def test_a_handler_that_is_not_pythons_comes_back_too(tmp_path):
    """Or the signal would end the program, which a call of `pipeline.train` is only a part of."""
    with open(tmp_path / "stacks", "w+b") as stacks:
        faulthandler.register(signal.SIGUSR2, file=stacks)
        try:
            with StopSignal() as stop:
                os.kill(os.getpid(), signal.SIGUSR2)
                assert STOP_SIGNALS[stop.received] == "SIGUSR2"
            assert stacks.read() == b""
            os.kill(os.getpid(), signal.SIGUSR2)
            stacks.seek(0)
            assert b"most recent call first" in stacks.read()
        finally:
            faulthandler.unregister(signal.SIGUSR2)


def test_under_nohup_a_hangup_stays_ignored():
    with action_kept(signal.SIGHUP):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == GO_ON
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@dataclass(frozen=True)
class Start:
    """One start that a signal ended: exit codes, output, and what then lay in the run's folder."""

    codes: list[int]
    text: str
    first_step: int
    last_step: int
    failure: str | None
    stop: Stop | None


class Run:
    """A run that signals stop and new starts take up."""

    def __init__(self, data: Path, runs: Path) -> None:
        self.path = runs / "test"
        # Slow enough that no start reaches the end before its signal.
        self.slow = [str(SABOTEUR), "slow-step:0.2:all", *resumable(data, runs)]
        self.horovodrun = self.stop_horovodrun(signal.SIGTERM)
        self.by_rank = {
            "SIGINT": self.stop_rank(0, signal.SIGINT, "torch"),
            "SIGUSR1": self.stop_rank(1, signal.SIGUSR1, "horovod"),
        }
        self.finished = jobs.run(["-m", "pipeline.train", *resumable(data, runs)], ranks=2)

    def newest(self) -> int:
        """Step of the newest checkpoint, 0 without any."""
        return max(checkpoint_steps(self.path), default=0)

    def stop_rank(self, rank: int, number: signal.Signals, engine: Engine) -> Start:
        """Starts 2 ranks and signals one of them, from outside; nothing else makes them save."""
        first, lines = self.newest(), len(metrics(self.path))
        argv = [*self.slow, "--run.checkpoint_every_steps=null"]
        ranks = jobs.start(argv, ranks=2, engine=engine)
        wait_for(lambda: len(metrics(self.path)) > lines, "the next line of metrics")
        ranks.send(number, rank)
        ranks.wait()
        return self._ended(ranks.codes, ranks.text, first)

    def stop_horovodrun(self, number: signal.Signals) -> Start:
        """Starts 2 ranks under horovodrun and signals that."""
        job = jobs.horovodrun(self.slow)
        wait_for(self.newest, "a checkpoint")
        job.send_signal(number)
        text = jobs.finish(job)
        return self._ended([job.returncode], text, 0)

    def _ended(self, codes: list[int], text: str, first: int) -> Start:
        run = RunFolder(self.path)
        assert newest_checkpoint(self.path)["step"] == self.newest(), "the newest is not whole"
        return Start(codes, text, first, self.newest(), run.first_cause(), run.stopped())


@pytest.fixture(scope="module")
def stopped(small_data, tmp_path_factory):
    """The run, stopped three times and then finished."""
    runs = tmp_path_factory.mktemp("stopped")
    yield Run(small_data, runs)
    shutil.rmtree(runs)


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_at_a_step_boundary(stopped, name):
    start = stopped.by_rank[name]
    assert start.codes == [STOPPED, STOPPED], start.text
    assert start.failure is None
    assert start.stop == Stop(name, start.last_step)
    assert "error:" not in start.text and "Traceback" not in start.text, start.text
    assert f"resuming from {stopped.path}/checkpoints" in start.text
    assert 0 < start.first_step < start.last_step < 19
    assert f"stopped before step {start.last_step} by {name}; start again to resume" in start.text


def test_sigterm_to_horovodrun_leaves_a_whole_checkpoint(stopped):
    assert stopped.horovodrun.codes != [FINISHED]
    assert 0 < stopped.horovodrun.last_step < 19


def test_a_stopped_run_started_again_ends_with_the_bits_of_the_uninterrupted_one(
    stopped, uninterrupted
):
    assert stopped.finished.codes == [FINISHED, FINISHED], stopped.finished.text
    assert state_differences(stopped.path, uninterrupted) == []
    assert metrics(stopped.path) == metrics(uninterrupted)


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


def test_a_loss_that_is_not_a_number_on_one_rank_ends_all_together(small_data, tmp_path):
    argv = [str(SABOTEUR), "nan-loss:4:1", *small_settings(small_data, tmp_path)]
    options = ["--run.checkpoint_every_steps=1", "--optim.base_lr=0.32"]  # 0.01 for 8 images
    ranks = jobs.run([*argv, *options], ranks=2, engine="torch")
    cause = "rank 1: the loss is nan at step 4 with lr 0.01; lower optim.base_lr or lengthen"
    assert ranks.codes == [FAILED, FAILED]
    assert re.findall(r"^error: .*", ranks.text, re.MULTILINE) == [
        f"error: {cause} schedule.warmup_epochs, and start again from the last checkpoint"
    ]
    assert (tmp_path / "test" / "failure.txt").read_text().startswith(f"error: {cause}")
    assert checkpoint_steps(tmp_path / "test")[-1] == 4, "a checkpoint has the NaN in it"
    for tensor in newest_checkpoint(tmp_path / "test")["model"].values():
        assert torch.isfinite(tensor).all()
    shutil.rmtree(tmp_path)


def test_wrong_input_is_said_once_and_every_rank_leaves_with_its_code(small_data, tmp_path):
    ranks = jobs.start(train(small_data, tmp_path, "--data.global_batch_size=7"), ranks=2)
    wait_for(lambda: ranks.processes[0].poll() is not None, "rank 0, which says it")
    ranks.wait()
    words = "data.global_batch_size=7 is not divisible by 2 ranks; the nearest that are: 6 and 8"
    assert ranks.codes == [WRONG_INPUT, WRONG_INPUT]
    # Nothing here ends rank 1 after rank 0, as a launcher does.
    assert ranks.outputs == [f"error: {words}\n", f"error: rank 1: {words}\n"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_use_is_refused_and_its_holder_named(small_data, tmp_path):
    job = jobs.start([str(SABOTEUR), "slow-step:60:all", *small_settings(small_data, tmp_path)])
    run = RunFolder(tmp_path / "test")
    wait_for(run.holder, "the first job to hold the run")
    who = rf"process {job.processes[0].pid} on {socket.gethostname()}, since 20\S+ \S+"
    said = rf"^the run in {run.path} is in use by {who}; wait for it or choose another run\.name$"
    with pytest.raises(Reported, match=said) as refused:
        train_here(small_data, tmp_path)
    assert refused.value.code == WRONG_INPUT
    job.send(signal.SIGKILL, 0)
    job.wait()


def test_the_summary_says_whether_the_expectation_was_reached():
    assert against_expectation(0.965, 0.95) == (
        "as expected: top-1 96.50% reaches the 95.00% of run.expect_top1"
    )
    assert against_expectation(0.9, 0.95) == (
        "below expectation: top-1 90.00% is 5.00 points under the 95.00% of run.expect_top1"
    )
    with pytest.raises(ConfigError, match=r"run\.expect_top1=95 must lie in \[0, 1\], or null"):
        RunConfig(expect_top1=95)
