"""NCCL's log under the launcher, and what is told of a job's end."""

from __future__ import annotations

import contextlib
import signal

import jobs
import pytest

from launch.slurm import __main__ as slurm_main
from launch.slurm.allocation import Allocation, Node
from launch.slurm.checks import examine, nccl_logging, watch_nccl
from launch.slurm.options import LaunchOptions, split
from launch.slurm.requeue import End
from pipeline.config import ConfigError
from pipeline.system.files import locked
from pipeline.train.folder import RunFolder

ONCE = Allocation("7", (Node("node1", "10.0.0.1", 1, 0),), None, restarts=0)
AGAIN = Allocation("7", ONCE.nodes, None, restarts=1)
LINE = "node1:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/{}\n"


@pytest.fixture
def srun(tmp_path, install):
    """A srun on whose nodes nothing answers."""
    install("srun", f"ls -A {tmp_path}/runs/a > {tmp_path}/seen")
    return tmp_path / "seen"


@pytest.mark.parametrize("before", [None, "config.yaml"])
def test_a_job_that_the_check_refuses_leaves_no_empty_run_folder(tmp_path, srun, before, capsys):
    run_dir = tmp_path / "runs" / "a"
    if before is not None:
        run_dir.mkdir(parents=True)
        (run_dir / before).touch()
    _, program = split(["train", f"--run.dir={tmp_path}/runs", "--run.name=a"])
    with pytest.raises(ConfigError, match="the check before the job failed: "):
        examine(ONCE, program, LaunchOptions())
    assert ".doctor-" in srun.read_text()  # it was there for the nodes to see
    assert run_dir.exists() == (before is not None)
    assert [path.name for path in run_dir.glob("*")] == ([before] if before else [])


def test_nccl_writes_its_log_into_the_runs_folder(tmp_path):
    (tmp_path / "nccl").mkdir()
    (tmp_path / "nccl" / "old.log").write_text("of an earlier start")
    found = nccl_logging(tmp_path, {})
    assert found["NCCL_DEBUG"] == "INFO"
    assert found["NCCL_DEBUG_FILE"] == f"{tmp_path}/nccl/%h.%p.log"
    assert list((tmp_path / "nccl").iterdir()) == []


def test_a_log_that_the_user_has_elsewhere_is_left_alone_and_said(tmp_path, capsys):
    assert nccl_logging(tmp_path, {"NCCL_DEBUG": "WARN"}) == {}
    assert "NCCL_DEBUG is set, so NCCL's transport is not looked at" in capsys.readouterr().out


@pytest.mark.parametrize("transport, warned", [("Socket/0", True), ("IB/0/GDRDMA", False)])
def test_nodes_that_talk_over_a_plain_socket_are_warned_of(tmp_path, capsys, transport, warned):
    (tmp_path / "nccl").mkdir()
    (tmp_path / "nccl" / "node1.1.log").write_text(LINE.format(transport))
    watch_nccl(tmp_path, nodes=2, nap_sec=0.01).join(10)
    assert ("warning: NCCL transport: NET/Socket" in capsys.readouterr().out) == warned


@pytest.fixture
def scontrol(tmp_path, install, monkeypatch):
    """A scontrol that notes what it is asked; the launcher waits for no file system."""
    monkeypatch.setattr("launch.end.PATIENCE_SEC", 0.0)
    install("scontrol", f'echo "$@" >> {tmp_path}/asked')
    return tmp_path / "asked"


def failed(run, text):
    (run / "failure.txt").write_text(text)


def test_the_cause_of_an_earlier_start_is_not_told_again(tmp_path, capsys, scontrol):
    failed(tmp_path, "error: long ago\n")
    end = End(tmp_path, ONCE, requeue=True)
    assert end.report(137, None) == 1
    said = capsys.readouterr().err
    assert "long ago" not in said and "error: srun ended with code 137 and the ranks left" in said


def test_the_first_cause_is_the_last_word(tmp_path, capsys):
    end = End(tmp_path, ONCE, requeue=True)
    failed(tmp_path, "error: the loss is nan\nrank 1 on node2\n")
    assert end.report(143, None) == 1
    assert capsys.readouterr().err == "error: the loss is nan\nrank 1 on node2\n"


def test_a_failure_without_room_for_a_word_is_one_and_is_not_requeued(tmp_path, capsys, scontrol):
    end = End(tmp_path, ONCE, requeue=True)
    failed(tmp_path, "")
    assert end.report(1, signal.SIGUSR1) == 1
    assert "error: the disk was too full for the cause" in capsys.readouterr().err
    assert not scontrol.exists()


@pytest.mark.parametrize(
    ("stopped_by", "received", "allowed", "requeued"),
    [
        ("SIGTERM", signal.SIGUSR1, True, False),
        ("SIGUSR1", None, True, True),
        ("SIGUSR1", None, False, False),
    ],
)
def test_sigusr1_requeues_if_that_is_allowed_and_sigterm_never(
    tmp_path, scontrol, stopped_by, received, allowed, requeued
):
    end = End(tmp_path, ONCE, requeue=allowed)
    RunFolder(tmp_path).record_stop(stopped_by, 5)
    assert end.report(75, received) == 75
    assert scontrol.exists() == requeued


def test_a_signal_that_killed_ranks_while_they_loaded_is_no_failure(tmp_path, scontrol, capsys):
    assert End(tmp_path, ONCE, requeue=True).report(138, signal.SIGUSR1) == 75
    assert scontrol.read_text() == "requeue 7\n"
    said = capsys.readouterr().out
    assert "SIGUSR1 came before the first step" in said
    assert said.endswith("stopped before the first step; job 7 is requeued and will start again\n")


def test_what_is_said_of_a_checkpoint_after_a_stop_is_true(tmp_path, scontrol, capsys):
    end = End(tmp_path, ONCE, requeue=True)
    assert end.report(138, signal.SIGTERM) == 75
    assert capsys.readouterr().out.endswith("launch: stopped; start it again, unless Slurm does\n")
    RunFolder(tmp_path).record_stop("SIGTERM", 5)
    assert end.report(75, signal.SIGTERM) == 75
    assert "start it again to resume from its checkpoint, unless" in capsys.readouterr().out


def test_a_requeue_that_ends_its_own_command_is_one(tmp_path, install, capsys):
    """Slurm ends all processes of a job that it requeues, `scontrol` among them."""
    install("scontrol", "kill -TERM $$")
    end = End(tmp_path, ONCE, requeue=True)
    RunFolder(tmp_path).record_stop("SIGUSR1", 5)
    assert end.report(75, signal.SIGUSR1) == 75
    said = capsys.readouterr().out
    assert said == "launch: stopped with a checkpoint; job 7 is requeued and will resume\n"


@pytest.mark.parametrize("steps_now", [3, 5])
def test_a_limit_too_short_for_a_step_does_not_requeue_for_ever(
    tmp_path, scontrol, capsys, steps_now
):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "step-000000003.pt").touch()
    end = End(tmp_path, AGAIN, requeue=True)
    (checkpoints / f"step-{steps_now:09d}.pt").touch()
    RunFolder(tmp_path).record_stop("SIGUSR1", steps_now)
    assert end.report(75, None) == 75
    assert scontrol.exists() == (steps_now > 3)
    refused = "this start did not make a step; give the job more --time" in capsys.readouterr().out
    assert refused == (steps_now == 3)


def test_a_program_without_a_run_folder_has_said_its_cause_above(capsys):
    assert End(None, ONCE, requeue=True).report(2, None) == 2
    assert "srun ended with code 2; the cause is above" in capsys.readouterr().out


@pytest.mark.parametrize("ends", ["report", "early"])
def test_an_evaluation_that_is_stopped_has_no_checkpoint_and_is_not_requeued(
    ends, scontrol, capsys
):
    end = End(None, ONCE, requeue=True)
    code = end.report(138, signal.SIGUSR1) if ends == "report" else end.early(signal.SIGUSR1)
    assert code == 75 and not scontrol.exists()
    assert capsys.readouterr().out == (
        "launch: stopped by SIGUSR1; submit it again, with more --time if that has run out\n"
    )


@pytest.mark.parametrize("in_use", [False, True])
def test_nccls_logs_of_an_earlier_job_go_and_those_of_one_that_runs_stay(tmp_path, in_use):
    run = RunFolder(tmp_path)
    run.nccl.mkdir()
    (run.nccl / "node1.1.log").write_text("old")
    with contextlib.ExitStack() as held:
        if in_use:
            held.enter_context(locked(run.lock))
        nccl_logging(tmp_path, {})
    assert (run.nccl / "node1.1.log").exists() == in_use


def test_a_signal_after_the_jobs_end_does_not_change_the_launchers_code():
    script = (
        "import os, signal; from launch.slurm.__main__ import Relay; relay = Relay();"
        "relay.ignore(); [os.kill(os.getpid(), s) for s in (signal.SIGUSR1, signal.SIGTERM)]"
    )
    assert jobs.run(["-c", script]).codes == [0]


@pytest.mark.parametrize("fails", [False, True])
def test_the_launcher_hears_no_signal_after_any_of_its_ends(monkeypatch, fails):
    def launch(_argv, _relay):
        if fails:
            raise ConfigError("no such option")
        return 2

    monkeypatch.setattr(slurm_main, "_launch", launch)
    before = {number: signal.getsignal(number) for number in slurm_main._RELAYED}
    try:
        with contextlib.suppress(ConfigError):
            assert slurm_main.main([]) == 2
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
