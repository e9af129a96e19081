"""Ranks on this machine by `launch.local`: how they end, and what the last line says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from run_files import checkpoint_steps, metrics, newest_checkpoint
from slurm_cluster import processes

from launch import local
from launch.local import check_ranks, split
from pipeline.config import ConfigError
from pipeline.ranks.local import LocalRanks

ENDLESS = ("--schedule.epochs=1000", "--run.checkpoint_every_steps=3", "--run.log_every_steps=1")


def start(*argv: str, module: str = "launch.local", **env: str) -> subprocess.Popen[str]:
    """The launcher in a session of its own."""
    command = [sys.executable, "-m", module, *argv]
    return subprocess.Popen(command, env=jobs.environment(**env), text=True, **jobs.POPEN)


def ended(*argv: str, **about: str) -> tuple[int, list[str]]:
    """The code and the lines of a launcher."""
    process = start(*argv, **about)
    text = jobs.finish(process)
    return process.returncode, text.splitlines()


def training(data: Path, runs: Path, *more: str) -> list[str]:
    return ["train", *jobs.small_settings(data, runs), "--run.device=cpu", *more]


@pytest.fixture
def broken(small_data: Path, tmp_path: Path) -> tuple[Path, str]:
    """A data set with one image that is cut off, and its path."""
    root = jobs.copy_data(small_data, tmp_path / "broken")
    image = next(iter(sorted((root / "train").rglob("*.JPEG"))))
    image.write_bytes(image.read_bytes()[:400])
    return root, str(image)


SLOW_TORCH = pytest.param("torch", marks=pytest.mark.slow)


@pytest.mark.parametrize("engine", ["horovod", SLOW_TORCH])
def test_the_last_line_is_the_cause_and_the_code_is_the_ranks(engine, broken, tmp_path):
    root, image = broken
    options = training(root, tmp_path / "runs")
    code, lines = ended("-np", "2", f"--launch.engine={engine}", *options)
    assert code == 2, lines
    assert lines[-1].startswith(f"error: the image {image} cannot be used: ")
    assert f"{lines[-1]}\n" in (tmp_path / "runs" / "test" / "failure.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["horovodrun", "torchrun"])
def test_the_cause_is_repeated_after_another_launcher_whose_code_stays(launcher, broken, tmp_path):
    root, image = broken
    options = training(root, tmp_path / "runs")[1:]
    own = {
        "horovodrun": ["horovodrun", "-np", "2", sys.executable],
        "torchrun": ["torchrun", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"],
    }[launcher]
    code, lines = ended(*own, "-m", "pipeline.train", *options, module="launch.repeat")
    assert code == 1
    assert lines[-1].startswith(f"error: the image {image} cannot be used: ")
    assert not lines[-2].startswith("error:"), "the launcher's own lines come before"


def test_a_command_that_does_well_or_is_not_there_ends_as_it_should():
    assert ended("sh", "-c", "exit 3", module="launch.repeat") == (3, [])
    assert ended("sh", "-c", "kill -KILL $$", module="launch.repeat") == (137, [])
    code, (line,) = ended("/no/such", "x", module="launch.repeat")
    assert (code, line[:33]) == (2, "error: /no/such cannot be run (No")
    assert ended(module="launch.repeat")[0] == 2


def test_the_cause_of_a_rank_elsewhere_is_repeated_from_the_folder_of_the_run(tmp_path):
    """Such a rank cannot write into the launcher's file, as in another pod."""
    run = tmp_path / "x"
    run.mkdir()
    (run / "failure.txt").write_text("error: of an earlier start\n")
    options = ["-m", "pipeline.train", f"--run.dir={tmp_path}", "--run.name=x"]
    script = f"echo 'error: rank 9: far\nmore' > {run}/failure.txt; echo launcher; exit 1"
    code, lines = ended("sh", "-c", script, *options, module="launch.repeat")
    assert (code, lines) == (1, ["launcher", "error: rank 9: far"])
    (run / "stopped.txt").touch()
    script = f"rm {run}/stopped.txt; echo '{{}}' > {run}/stopped.txt; exit 1"
    assert ended("sh", "-c", script, *options, module="launch.repeat") == (1, [])
    wrong = [*options, "--run.naem=x"]
    assert ended("sh", "-c", "exit 1", *wrong, module="launch.repeat") == (1, [])


ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_a_launcher_that_is_a_rank_itself_is_refused(tmp_path):
    options = ["evaluate", "--checkpoint", str(tmp_path / "none.pt"), "--run.device=cpu"]
    code, (line,) = ended("-np", "1", *options, **ALONE | {"WORLD_SIZE": "2"})
    assert code == 2
    assert line.startswith("error: another launcher has started launch.local as rank 0 of 2 ")


def test_variables_of_another_launcher_do_not_reach_the_ranks(tmp_path):
    """Such as a scheduler of torchrun's jobs gives a pod that is alone."""
    options = ["evaluate", "--checkpoint", str(tmp_path / "none.pt"), "--run.device=cpu"]
    code, lines = ended("-np", "2", *options, **ALONE)
    assert code == 2
    assert lines[-1].startswith(f"error: --checkpoint {tmp_path}/none.pt does not exist; "), lines


def test_an_evaluation_without_a_run_ends_with_its_cause_too(tmp_path):
    argv = ["evaluate", "--checkpoint", str(tmp_path / "none.pt"), "--run.device=cpu"]
    code, lines = ended("-np", "2", *argv)
    assert code == 2
    assert lines[-1].startswith(f"error: --checkpoint {tmp_path}/none.pt does not exist; ")


@pytest.fixture
def under_way(small_data: Path, tmp_path: Path, request) -> Iterator[subprocess.Popen[str]]:
    """A training of two ranks that has made steps after a checkpoint."""
    run = tmp_path / "runs" / "test"
    options = training(small_data, tmp_path / "runs", *ENDLESS)
    process = start("-np", "2", f"--launch.engine={request.param}", *options)
    try:
        jobs.wait_for(lambda: checkpoint_steps(run), "a checkpoint")
        jobs.wait_for(
            lambda: max(line["step"] for line in metrics(run)) > checkpoint_steps(run)[-1], "a step"
        )
        yield process
    finally:
        process.kill()
        process.wait()
        jobs.wait_for(lambda: not ranks_of(run), "the end of the ranks", 40)


def ranks_of(run: Path) -> dict[int, int]:
    """The processes of the run's ranks, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            env = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"pipeline.train" in command and f"--run.dir={run.parent}".encode() in command:
            rank = next((e for e in env if e.startswith((b"HOROVOD_RANK=", b"RANK="))), None)
            if rank is not None:
                found[int(rank.partition(b"=")[2])] = int(folder.name)
    return found


@pytest.mark.parametrize("under_way", ["horovod", SLOW_TORCH], indirect=True)
def test_one_ctrl_c_saves_and_leaves_75(under_way, tmp_path):
    under_way.send_signal(signal.SIGINT)
    lines = jobs.finish(under_way).splitlines()
    assert under_way.returncode == 75, lines
    assert "launch: saving and stopping; Ctrl-C again ends without saving" in lines
    assert lines[-1] == "launch: stopped; start it again to resume from its checkpoint"
    run = tmp_path / "runs" / "test"
    said = json.loads((run / "stopped.txt").read_text())
    assert said == {"signal": "SIGINT", "step": newest_checkpoint(run)["step"]}


def test_ctrl_c_while_the_ranks_load_is_a_stop_too(small_data, tmp_path):
    process = start("-np", "2", *training(small_data, tmp_path / "runs", *ENDLESS))
    wanted = f"--run.dir={tmp_path / 'runs'}"
    jobs.wait_for(lambda: len(processes(wanted)) == 3, "two ranks and their launcher")
    process.send_signal(signal.SIGINT)
    text = jobs.finish(process)
    assert process.returncode == 75, text
    assert "Traceback" not in text
    assert text.splitlines()[-1] == "launch: stopped; start it again", "there is no checkpoint"


@pytest.mark.parametrize("under_way", ["torch"], indirect=True)
def test_a_second_ctrl_c_ends_ranks_that_do_not_answer(under_way, tmp_path):
    for process in ranks_of(tmp_path / "runs" / "test").values():
        os.kill(process, signal.SIGSTOP)
    under_way.send_signal(signal.SIGINT)
    first = under_way.stdout.readline
    while "Ctrl-C again" not in (line := first()):
        assert line, "the first Ctrl-C is not answered"
    under_way.send_signal(signal.SIGINT)
    lines = jobs.finish(under_way).splitlines()
    assert under_way.returncode == 1
    assert lines[-1].startswith("error: ended at once by a second SIGINT; a next start resumes")


def test_a_stopped_evaluation_does_not_speak_of_checkpoints(tmp_path, capfd):
    before = {number: signal.getsignal(number) for number in local._RELAYED}
    try:
        relay = local.Relay(saves=split(["evaluate", "--checkpoint=x"])[1].run_dir is not None)
        os.kill(os.getpid(), signal.SIGINT)
        code = local.LocalEnd(None, tmp_path / "none").report(1, relay.received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code == 75
    out, err = capfd.readouterr()
    assert err == "\nlaunch: stopping; Ctrl-C again ends at once\n"
    assert out == "launch: stopped by SIGINT; start it again\n"


@pytest.mark.parametrize(
    ("sent", "received", "again"),
    [
        (["SIGUSR1", "SIGTERM"], "SIGTERM", None),  # a scheduler warns, then ends
        (["SIGHUP", "SIGTERM", "SIGHUP"], "SIGTERM", None),
        (["SIGTERM", "SIGUSR1"], "SIGTERM", None),
        (["SIGUSR1", "SIGINT", "SIGTERM"], "SIGINT", "SIGTERM"),
        (["SIGUSR1", "SIGHUP"], "SIGUSR1", None),
    ],
)
def test_only_a_second_signal_to_leave_ends_at_once(sent, received, again):
    before = {number: signal.getsignal(number) for number in local._RELAYED}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup
        relay = local.Relay()
        for name in sent:
            os.kill(os.getpid(), signal.Signals[name])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert relay.received == signal.Signals[received]
    assert relay.again == (again and signal.Signals[again])


@pytest.mark.parametrize("received", [signal.SIGTERM, None])
def test_a_rank_that_closes_its_files_after_a_stop_is_given_time(received, monkeypatch):
    """Of those that fail, which a hang of the others must not hold up, it is not so much."""
    monkeypatch.setattr(local, "_LAST_WORDS_SEC", 0.1)
    scripts = ["trap '' TERM; echo; sleep 1; exit 0", "exit 75"]
    popen = {"stdout": subprocess.PIPE, "text": True}
    slow = subprocess.Popen(["sh", "-c", scripts[0]], **popen)
    assert slow.stdout.readline() == "\n", "it does not listen yet"
    ranks = LocalRanks([slow, subprocess.Popen(["sh", "-c", scripts[1]], **popen)], None)
    before = {number: signal.getsignal(number) for number in local._RELAYED}
    try:
        relay = local.Relay()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    relay.received = received
    with ranks:
        assert local.wait(ranks, relay) == 75
    assert slow.returncode == (0 if received else -signal.SIGKILL)
    slow.stdout.close()
    ranks.processes[1].stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("under_way", ["horovod"], indirect=True)
def test_a_killed_rank_is_named_on_the_last_line(under_way, tmp_path):
    os.kill(ranks_of(tmp_path / "runs" / "test")[1], signal.SIGKILL)
    lines = jobs.finish(under_way).splitlines()
    assert under_way.returncode == 1
    assert lines[-1].startswith("error: ") and "rank 1 " in lines[-1], lines


@pytest.mark.slow
@pytest.mark.parametrize("under_way", ["torch"], indirect=True)
def test_ranks_do_not_outlive_a_launcher_that_is_killed(under_way, tmp_path):
    run = tmp_path / "runs" / "test"
    assert len(ranks_of(run)) == 2
    under_way.kill()
    jobs.wait_for(lambda: not ranks_of(run), "the end of the ranks", 60)
    assert json.loads((run / "stopped.txt").read_text())["signal"] == "SIGTERM"


def test_options_and_the_program_are_told_apart():
    options, program = split(["-np", "3", "train", "--launch.engine=torch", "--run.name=x"])
    assert (options.ranks, options.engine) == (3, "torch")
    assert program.module_and_options == ["pipeline.train", "--run.name=x"]
    assert split(["evaluate", "--checkpoint", "x.pt", "--run.device=cpu"])[0].ranks == 1


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "launch.local runs train or evaluate, not nothing; give it one of them, as in python"),
        (["trian"], "launch.local runs train or evaluate, not trian; did you mean train"),
        (["-np", "2", "prepare", "demo"], "launch.local runs train or evaluate, not prepare"),
        (["-np", "0", "train"], "-np 0 must be at least 1"),
        (["-np", "two", "train"], "-np two must be a whole number"),
        (["--launch.engin=torch", "train"], "--launch.engin; did you mean --launch.engine"),
        (["train", "--launch.engine=mpi"], "--launch.engine mpi must be one of horovod, torch"),
        (["train", "--model.detph=50"], "no setting --model.detph; did you mean --model.depth"),
    ],
)
def test_a_wrong_command_is_refused_before_a_rank_starts(argv, message):
    with pytest.raises(ConfigError, match=message):
        split(argv)


def test_the_launcher_names_itself_as_it_was_started(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/trainyard"])
    with pytest.raises(ConfigError, match="^trainyard launch runs train or .* as in trainyard lau"):
        split([])
    with pytest.raises(ConfigError, match="^trainyard launch runs train or evaluate, not trian;"):
        split(["trian"])


@pytest.fixture
def two_gpus(install, monkeypatch):
    """A machine whose driver lists two GPUs, of which CUDA is shown both."""
    install("nvidia-smi", "printf '570.1, NVIDIA H200\\n570.1, NVIDIA H200\\n'")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_more_ranks_than_gpus_are_refused(two_gpus, monkeypatch):
    program = split(["train"])[1]
    assert split(["train"])[0].ranks == 2, "one for each"
    check_ranks(2, program)
    with pytest.raises(ConfigError, match="-np 3 is more than the 2 GPUs here .* give -np 2, or"):
        check_ranks(3, program)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(ConfigError, match="-np 2 is more than the 1 GPU here"):
        check_ranks(2, program)
    check_ranks(3, split(["train", "--run.device=cpu"])[1])


def test_more_ranks_than_cores_are_said(capsys, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    check_ranks(2, split(["train", "--run.device=cpu"])[1])
    assert capsys.readouterr().out == ""
    check_ranks(3, split(["train", "--run.device=cpu"])[1])
    assert "warning: 3 ranks share 2 cores" in capsys.readouterr().out


def test_the_signals_are_ignored_in_the_end():
    before = {number: signal.getsignal(number) for number in local._RELAYED}
    try:
        local.Relay().ignore()
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
