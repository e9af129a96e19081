"""python -m pipeline.runs as a person types it, on real runs while and after they train."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
from jobs import SABOTEUR, resumable, wait_for
from made_runs import CIFAR, RunMaker
from run_files import metrics

from pipeline.config import ConfigError
from pipeline.runs.__main__ import main
from pipeline.runs.listing import as_json, list_runs

FINISHED, FAILED, STOPPED = 0, 1, 75
COMMAND = ["-m", "pipeline.runs"]


@pytest.fixture
def runs(capsys):
    """Runs the command in this process: its exit code, and what it printed."""

    def call(*argv):
        code = 0
        try:
            main([str(one) for one in argv])
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return call


def state_of(folder):
    (run,) = as_json(list_runs(folder))["runs"]
    return run


@dataclass(frozen=True)
class Start:
    """One start of a run: how it was listed while it ran and after, and what a follower saw."""

    during: dict
    after: dict
    code: int
    follower: jobs.Ranks
    logged: list[str]


class Trainee:
    """A run of one rank, followed from another process each time it is started."""

    def __init__(self, data: Path, below: Path) -> None:
        self.folder = below / "test"
        settings = [*resumable(data, below), "--run.checkpoint_every_steps=6"]
        self.slow = [str(SABOTEUR), "slow-step:0.2:all", *settings]
        self.plain = ["-m", "pipeline.train", *settings]

    def start(self, argv: list[str], end: signal.Signals | None = None) -> Start:
        log = self.folder / "log.txt"
        before = len(log.read_text().splitlines()) if log.exists() else 0

        def said() -> list[str]:
            return log.read_text().splitlines()[before:] if log.exists() else []

        job = jobs.start(argv)
        wait_for(said, "the run's first words")
        follower = jobs.start([*COMMAND, str(self.folder.parent), "--follow", "test"])
        during = state_of(self.folder)
        if end is not None:
            wait_for(lambda: any(" loss " in line for line in said()), "a line of training")
            job.send(end, 0)
        job.wait()
        follower.wait()
        after = state_of(self.folder)
        return Start(during, after, job.codes[0], follower, said())


@pytest.fixture(scope="module")
def starts(small_data, tmp_path_factory):
    """A run stopped by a signal, killed and finished, in this order."""
    trainee = Trainee(small_data, tmp_path_factory.mktemp("runs"))
    return {
        "stopped": trainee.start(trainee.slow, signal.SIGTERM),
        "interrupted": trainee.start(trainee.slow, signal.SIGKILL),
        "finished": trainee.start(trainee.plain),
    }


@pytest.mark.parametrize(
    ("end", "code"),
    [("stopped", STOPPED), ("interrupted", FAILED), ("finished", FINISHED)],
)
def test_a_follower_sees_a_run_to_its_end_and_returns_how_it_ended(starts, end, code):
    start = starts[end]
    assert start.during["state"] == "running", start.during
    assert start.during["process"] > 0
    assert start.after["state"] == end, start.after
    assert start.follower.codes == [code], start.follower.text
    assert start.code == (-signal.SIGKILL if end == "interrupted" else code)
    shown = start.follower.text.splitlines()
    assert f"test: {end}" in shown[-1]
    missed = [line for line in start.logged[-5:] if line not in shown]
    assert not missed, start.follower.text
    assert len(set(shown)) == len(shown)
    assert not set("|\x1b") & set(start.follower.text)  # a pipe has neither bar nor colours


def test_the_end_is_told_with_its_cause_and_place(starts):
    assert starts["stopped"].after["note"].startswith("by SIGTERM before step ")
    assert starts["interrupted"].after["note"] == "it left no word of its end"
    finished = starts["finished"].after
    assert (finished["step"], finished["total_steps"]) == (19, 19)
    assert (finished["epoch"], finished["epochs"]) == (3.0, 3.0)
    assert finished["network"] == "CIFAR ResNet-8 A"
    assert 0.0 <= finished["age_sec"] < 300.0
    folder = Path(finished["folder"])
    validated = [line["top1"] for line in metrics(folder) if line["event"] == "val"]
    assert finished["best_top1"] == max(validated)


def test_an_ended_run_is_followed_to_its_end_at_once(starts, runs, tmp_path):
    folder = Path(starts["finished"].after["folder"])
    code, text = runs("--follow", folder)
    assert (code, text.splitlines()[-1]) == (FINISHED, f"{folder}: finished")
    folder = RunMaker(tmp_path)("bad", CIFAR, steps=400, finished=False)
    (folder / "failure.txt").write_text("error: the loss is nan at step 14\nrank 0 on here\n")
    said = f"{folder}: failed: the loss is nan at step 14\n"
    assert runs(tmp_path, "--follow", "bad") == (FAILED, said)
    assert "bad  failed  CIFAR ResNet-20 A" in runs(tmp_path)[1]


def test_who_follows_can_leave_and_the_run_keeps_its_lock(tmp_path):
    folder = RunMaker(tmp_path)("live", CIFAR, steps=400, finished=False)
    (folder / "log.txt").write_text("10:00 earlier\n")
    with open(folder / "lock", "a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "config.yaml").write_text("")  # as while the run writes it
        follower = jobs.start([*COMMAND, "--follow", str(folder)])
        out = follower.processes[0].stdout
        assert out.readline() == "10:00 earlier\n"
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            log.write("10:01 news\n")
        assert out.readline() == "10:01 news\n"
        follower.send(signal.SIGINT, 0)
        follower.wait()
        assert (follower.codes, follower.text) == ([130], "")
        assert state_of(folder)["state"] == "running"


def written(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_the_list_shows_runs_the_newest_last_and_names_what_is_none(runs, tmp_path):
    make = RunMaker(tmp_path)
    new, old = make("new", CIFAR), make("group/old", CIFAR, finished=False)
    os.utime(old / "metrics.jsonl", (1.0, 1.0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").touch()
    before = written(tmp_path)
    head, first, second, skipped = runs(tmp_path)[1].splitlines()
    assert head.split()[:3] == ["run", "state", "network"]
    assert first.split()[:3] == ["group/old", "interrupted", "CIFAR"]
    assert second.split()[:3] == ["new", "finished", "CIFAR"]
    assert "89.00%" in second
    assert skipped == f"skipped: {tmp_path}/empty is no run: it has no config.yaml and no lock"
    assert len(runs(new)[1].splitlines()) == 2
    assert runs(tmp_path / "report") == (0, f"no run below {tmp_path}/report/\n")
    assert written(tmp_path) == before  # looking changes nothing


def give_up_roots_rights():
    """Files closed to their owner are closed to root, too, without two capabilities."""
    prctl, drop_from_bounding_set = ctypes.CDLL(None).prctl, 24
    for override_or_read_search in (1, 2):
        prctl(drop_from_bounding_set, override_or_read_search, 0, 0, 0)


def test_folders_that_cannot_be_read_are_named_and_the_rest_is_shown(tmp_path):
    make = RunMaker(tmp_path)
    make("open", CIFAR)
    closed, secret = make("closed", CIFAR), make("secret", CIFAR)
    (make("broken", CIFAR) / "config.yaml").write_text("model: [depth")
    closed.chmod(0)
    (secret / "metrics.jsonl").chmod(0)
    done = subprocess.run(
        [sys.executable, *COMMAND, str(tmp_path)], env=jobs.environment(), cwd=jobs.REPOSITORY,
        capture_output=True, text=True, check=False, preexec_fn=give_up_roots_rights,
    )  # fmt: skip
    closed.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["open", "finished"]
    assert f"skipped: {closed} cannot be read (Permission denied" in done.stdout
    assert f"{secret} cannot be read (Permission denied of metrics.jsonl)" in done.stdout
    assert "broken/config.yaml is not YAML" in done.stdout


def test_a_cut_line_of_metrics_does_not_matter(runs, tmp_path):
    folder = RunMaker(tmp_path)("cut", CIFAR, steps=800)
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    _, row = runs(tmp_path)[1].splitlines()
    assert "interrupted" in row and " 800/" in row


def test_runs_are_compared_by_the_settings_in_which_they_differ(runs, tmp_path):
    make = RunMaker(tmp_path)
    a = make("a", CIFAR | {"run.seed": 1})
    b = make("b", CIFAR | {"model.residual": False, "data.root": "elsewhere"})
    lines = [line.split() for line in runs(a, b)[1].splitlines()]
    assert lines == [
        ["setting", "a", "b"], ["data.root", "data/cifar-10", "elsewhere"],
        ["model.residual", "true", "false"], ["run.seed", "1", "0"],
    ]  # fmt: skip
    found = json.loads(runs(a, b, "--json")[1])
    assert found["settings"]["model.residual"] == [True, False]
    assert runs(a, a)[1] == "the runs have the same settings\n"


def test_a_wrong_command_is_answered(runs, tmp_path):
    run = RunMaker(tmp_path)("run", CIFAR, steps=400)
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "lock").write_text("")
    (tmp_path / "file").write_text("")
    for argv, message in [
        ([tmp_path / "none"], f"there is no run none below {tmp_path}/; "),
        (["--follow", tmp_path / "no/b"], f"there is no run b below {tmp_path}/no/; "),
        ([tmp_path / "file"], "file is no run but a file; give the run's folder"),
        ([run, tmp_path / "none"], "there is no run .*none below "),
        ([run, tmp_path / "young"], "young has no training yet: it has no config.yaml"),
        ([tmp_path, "--follow", "rum"], f"no run rum below {tmp_path}/; .*runs {tmp_path} lists"),
        ([run, run, "--follow", "run"], "--follow run is given with 2 folders; give the one"),
        (["--folow=a"], "did you mean --follow?"),
    ]:
        with pytest.raises((ConfigError, ValueError), match=message):
            runs(*argv)


def test_a_fresh_checkout_is_told_how_to_get_a_run(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs() == (0, "no run below runs/: python -m pipeline.train makes one\n")


def test_help_answers_before_anything_heavy_is_loaded():
    probe = (
        "import sys, pipeline.runs.__main__ as r\n"
        "try: r.main(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'horovod') if m in sys.modules])"
    )
    text = jobs.run(["-c", probe]).text
    assert "--follow NAME" in text
    assert text.splitlines()[-1] == "[]"
