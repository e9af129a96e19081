"""`run.loggers`: a run that is killed and resumed is one curve everywhere, and none ends a run."""

from __future__ import annotations

import json
import logging
import os
import pty
import shutil
import signal
import sys
import threading
from pathlib import Path

import jobs
import pytest
import tracked
from made_lines import line, made_run
from one_process import train_here

from pipeline.config import ConfigError
from pipeline.system.files import Room
from pipeline.train.events import read_metrics
from pipeline.train.monitor import loggers, sender
from pipeline.train.monitor.observer import Observer
from pipeline.train.monitor.sender import Sender, Tracker
from pipeline.train.monitor.tables import Tables

pytestmark = pytest.mark.usefixtures("offline")

ALL = "--run.loggers=[tensorboard,csv,wandb,mlflow]"
READ = (tracked.of_csv, tracked.of_mlflow, tracked.of_wandb)


def assert_same(run: Path) -> None:
    """Every logger has the curves of metrics.jsonl: each point once, in order."""
    wanted = tracked.of_metrics(run)
    assert {"train/loss", "val/top1"} <= wanted.keys()
    for read in READ:
        found = read(run)
        assert found.keys() == wanted.keys(), read.__name__
        for name, points in wanted.items():
            assert found[name] == [(at, pytest.approx(value)) for at, value in points], name


@pytest.fixture(scope="module")
def killed(small_data, tmp_path_factory):
    """A run on two ranks whose rank 0 was killed after more lines than the checkpoint knows of, and
    that was then resumed: its folder, and what MLflow had in between."""
    runs = tmp_path_factory.mktemp("runs")
    settings = [*jobs.resumable(small_data, runs), ALL, "--run.checkpoint_every_steps=null"]
    settings.append("--run.log_every_steps=1")
    env, run = {"WANDB_MODE": "offline"}, runs / "test"

    def sent() -> dict[str, list[tuple[int, float]]]:
        return tracked.of_mlflow(run) if (run / "mlflow.json").exists() else {}

    def redone() -> bool:
        """Whether MLflow has more than the first checkpoint, that of the first epoch, knows of."""
        return {"train/loss", "val/top1"} <= sent().keys() and sent()["train/loss"][-1][0] >= 72

    held = jobs.start([str(jobs.SABOTEUR), "pause-step:10:1", *settings], ranks=2, **env)
    jobs.wait_for(redone, "lines beyond a checkpoint")
    for rank in (0, 1):
        held.send(signal.SIGKILL, rank)
    held.wait()
    between = sent()
    ended = jobs.run(["-m", "pipeline.train", *settings], ranks=2, **env)
    assert ended.codes == [0, 0], ended.text
    return runs / "test", between, ended.text


def test_a_killed_run_is_one_curve_for_every_logger(killed):
    run, between, _ = killed
    resumed_at = [one["position"] for one in read_metrics(run / "metrics.jsonl")
                  if one["event"] == "start"][-1]  # fmt: skip
    assert between["train/loss"][-1][0] > resumed_at > 0  # there is something to be done again
    wanted = tracked.of_metrics(run)
    for read in READ:
        found = read(run)
        assert found.keys() == wanted.keys()
        for name, points in wanted.items():
            assert [at for at, _ in found[name]] == [at for at, _ in points], (read.__name__, name)
        for name in ("train/loss", "val/top1"):  # the same bits again
            assert found[name] == [(at, pytest.approx(value)) for at, value in wanted[name]]


def test_trackers_have_the_settings_and_the_end(killed):
    run, _, _ = killed
    client, run_id = tracked.mlflow_run(run)
    of_run = client.get_run(run_id)
    assert (of_run.info.run_name, of_run.info.status) == ("test", "FINISHED")
    assert of_run.data.params["data.global_batch_size"] == "8"
    assert len(client.search_runs([of_run.info.experiment_id])) == 1  # rank 1 has none
    tracked.of_wandb(run)  # waits until it is whole
    stored = tracked.wandb_file(run).read_bytes()
    assert b"data.global_batch_size" in stored and b"trainyard" in stored


def test_pictures_and_events_are_drawn_for_tensorboard_alone(small_data, tmp_path):
    run = train_here(small_data, tmp_path, "--run.loggers=[csv]")
    assert not (run / "tensorboard").exists()
    assert "--logdir" not in (run / "log.txt").read_text()
    assert tracked.of_csv(run) == tracked.of_metrics(run)


def test_without_loggers_their_libraries_are_not_loaded(small_data, tmp_path):
    names = {"tensorboard", "wandb", "mlflow", "csv"}
    code = (
        "import sys; from pipeline.train.__main__ import main; main(sys.argv[1:]); "
        f"print('loaded', sorted(m for m in sys.modules if m in {names - {'csv'}}))"
    )
    settings = [*jobs.small_settings(small_data, tmp_path), "--run.loggers=[]"]
    ended = jobs.run(["-c", code, *settings, "--schedule.epochs=1", "--schedule.drop_epochs=[]"])
    assert "loaded []" in ended.text
    assert not names & {path.name for path in (tmp_path / "test").iterdir()}


@pytest.mark.parametrize(
    ("name", "package"),
    [("wandb", "wandb"), ("mlflow", "mlflow-skinny"), ("tensorboard", "tensorboard")],
)
def test_a_library_that_is_not_installed_is_said_before_anything_starts(
    monkeypatch, tmp_path, name, package
):
    monkeypatch.setattr(loggers, "find_spec", lambda module: None)
    words = f"run.loggers names {name}, .* not installed; run pip install {package}, or leave"
    with pytest.raises(ConfigError, match=words):
        loggers.require_installed((name,))
    from pipeline.train.__main__ import main

    argv = [*jobs.small_settings(tmp_path, tmp_path / "runs"), f"--run.loggers=[{name}]"]
    with pytest.raises(ConfigError, match=words):
        main(argv)
    assert not (tmp_path / "runs").exists()


# W&B without a key.


@pytest.mark.parametrize("on_terminal", [False, True])
def test_wandb_without_a_key_asks_nobody_and_goes_on_offline(
    tmp_path, monkeypatch, caplog, on_terminal
):
    monkeypatch.setenv("WANDB_MODE", "online")
    if on_terminal:
        _, theirs = pty.openpty()
        for name, mode in (("stdin", "r"), ("stderr", "w")):
            monkeypatch.setattr(sys, name, os.fdopen(os.dup(theirs), mode))
        assert sys.stdin.isatty() and sys.stderr.isatty()
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        run = made_run(tmp_path, "--run.loggers=[wandb]")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    cure = "there is no API key: set WANDB_API_KEY, or run wandb login; training continues, and"
    assert warning == (
        f"warning: wandb of run.loggers is offline: {cure} wandb sync uploads what is kept in "
        f"{run}/wandb"
    )
    assert tracked.of_wandb(run) == tracked.of_metrics(run)


def test_resuming_adds_what_is_new_and_what_a_logger_missed(tmp_path):
    run = made_run(tmp_path, "--run.loggers=[mlflow]", positions=(10, 20, 30))
    identity = (run / "mlflow.json").read_text()
    made_run(tmp_path, ALL, positions=(40, 50), start=30)  # wandb and csv were off before
    made_run(tmp_path, ALL, positions=(50, 60), start=40, val=50)
    assert_same(run)
    assert (run / "mlflow.json").read_text() == identity


def test_a_run_that_begins_again_is_a_new_one_to_trackers(tmp_path):
    """Killed before its first checkpoint: nothing of it is left to be continued."""
    run = made_run(tmp_path, ALL, positions=(10, 20, 30))
    client, first = tracked.mlflow_run(run)
    made_run(tmp_path, ALL, positions=(10, 20))
    assert_same(run)
    assert client.get_run(first).info.status == "KILLED"
    assert tracked.mlflow_run(run)[1] != first


def test_a_run_that_mlflow_no_longer_has_is_sent_whole(tmp_path):
    client, run_id = tracked.mlflow_run(made_run(tmp_path, ALL, positions=(10, 20)))
    shutil.rmtree(tmp_path / ".mlruns" / client.get_run(run_id).info.experiment_id / run_id)
    assert_same(made_run(tmp_path, ALL, positions=(30, 40), start=20))


# Tables.


def test_a_table_has_a_column_for_what_comes_later_and_nothing_beyond_a_resume(tmp_path):
    tables = Tables(tmp_path, [], Room(tmp_path))
    for position, more in ((10, {}), (20, {"image_size": 64}), (30, {"top5": None})):
        tables.see({"event": "train", **line("train", position, time=1.5, **more)})
    tables.close()
    head, *rows = (tmp_path / "train.csv").read_text().splitlines()
    assert head.endswith(",image_size")
    assert [row.rpartition(",")[2] for row in rows] == ["", "64", ""]
    assert not (tmp_path / "val.csv").exists()
    kept = {"event": "train", **line("train", 10, time=1.5)}
    Tables(tmp_path, [kept], Room(tmp_path)).close()
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 2
    Tables(tmp_path, [], Room(tmp_path)).close()
    assert (tmp_path / "train.csv").read_text() == ""


# Loggers that fail, and trackers that block.


class Failing(Observer):
    wants_pictures = True

    def __init__(self, call: str) -> None:
        self._call = call

    def see(self, line):
        self._fail("see")

    def picture(self, tag, pixels, position):
        self._fail("picture")

    def close(self):
        self._fail("close")

    def _fail(self, call):
        if call == self._call:
            raise RuntimeError(f"no {call} today")


@pytest.mark.parametrize("call", ["see", "picture", "close"])
@pytest.mark.parametrize("name", ["tensorboard", "csv"])
def test_a_logger_that_raises_warns_once_and_the_run_ends_well(
    small_data, tmp_path, monkeypatch, caplog, call, name
):
    opened = {**loggers._OPEN, name: lambda begin: Failing(call)}
    monkeypatch.setattr(loggers, "_OPEN", opened)
    monkeypatch.setattr("pipeline.train.run.start_logging", lambda rank: None)
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        run = train_here(small_data, tmp_path, f"--run.loggers=[{name}]")
    said = [r.getMessage() for r in caplog.records if "run.loggers" in r.getMessage()]
    assert said == [
        f"warning: {name} of run.loggers failed (no {call} today) and gets nothing more from this "
        "start; training continues"
    ]
    assert read_metrics(run / "metrics.jsonl")[-1]["event"] == "done"


class Troubled(Tracker):
    """Fails in `call` for the first `times`; holds what it was sent."""

    def __init__(self, call: str = "", times: int = 1) -> None:
        self._call, self._times = call, times
        self.sent: list[int] = []
        self.done: bool | None = None

    def open(self):
        self._fail("open")

    def send(self, line):
        self._fail("send")
        self.sent.append(line["position"])

    def close(self, done):
        self._fail("close")
        self.done = done

    def _fail(self, call):
        if call == self._call and self._times:
            self._times -= 1
            raise ConnectionError(f"no {call} today")


def send_lines(tracker: Tracker, positions=(10, 20, 30), done: bool = True) -> None:
    kept = [{"event": "train", **line("train", 5)}]
    to = Sender("far", tracker, kept)
    for position in positions:
        to.see({"event": "train", **line("train", position)})
    if done:
        to.see({"event": "done", **line("done", 30)})
    to.close()


@pytest.mark.parametrize(
    ("call", "times", "sent", "and_now"),
    [
        ("open", 1, [], "gets nothing from this start"),
        ("send", 2, [5, 10, 20, 30], "is tried again with each line"),
        ("close", 1, [5, 10, 20, 30], "may miss its last lines"),
    ],
)
def test_a_tracker_that_fails_warns_once_and_has_no_gap(caplog, call, times, sent, and_now):
    tracker = Troubled(call, times)
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        send_lines(tracker)
    assert tracker.sent == sent
    assert tracker.done is (None if call != "send" else True)
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: far of run.loggers failed (no {call} today) and {and_now}; training continues"
    ]


@pytest.mark.parametrize("done", [False, True])
def test_a_tracker_that_blocks_holds_nothing_up(monkeypatch, caplog, done):
    monkeypatch.setattr(sender, "DONE_SEC" if done else "CLOSE_SEC", 0.05)
    monkeypatch.setattr(sender, "MOST_WAITING", 2)
    free = threading.Event()

    class Blocking(Troubled):
        def send(self, line):
            free.wait()
            super().send(line)

    tracker = Blocking()
    try:
        with caplog.at_level(logging.WARNING, logger="trainyard"):
            send_lines(tracker, range(10, 100, 10), done)  # returns
    finally:
        free.set()
    full, late = [record.getMessage() for record in caplog.records]
    assert "run.loggers failed (too many lines wait for it; the next start sends them) and" in full
    assert late.startswith("warning: far of run.loggers took no more lines within 0.05 s of")
    assert late.endswith("metrics.jsonl" if done else "a start that resumes this run sends it")


def test_what_a_file_of_an_identity_holds_else_is_no_identity(tmp_path):
    run = made_run(tmp_path, ALL)
    for name in ("wandb.json", "mlflow.json"):
        (run / name).write_text("[")
    made_run(tmp_path, ALL, positions=(30,), start=20)
    assert all(json.loads((run / name).read_text()) for name in ("wandb.json", "mlflow.json"))
    assert_same(run)
