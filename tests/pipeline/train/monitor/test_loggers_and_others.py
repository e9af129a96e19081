"""What loggers do to what is not theirs: other runs of the program, secrets, the end of a job."""

from __future__ import annotations

import json
import logging
import socket
import sys

import pytest
import tracked
from made_lines import line, made_run
from one_process import config_of, train_here

from pipeline.config import ConfigError
from pipeline.ranks.watchdog import Watchdog
from pipeline.train.events import read_metrics
from pipeline.train.folder import RunFolder
from pipeline.train.monitor import loggers, sender, wandb_run
from pipeline.train.monitor.guarded import without_secret
from pipeline.train.monitor.monitor import RunMonitor
from pipeline.train.monitor.observer import Observer
from pipeline.train.monitor.sender import Sender, Tracker

pytestmark = pytest.mark.usefixtures("offline")

PATIENCE_SEC = 60.0


def test_a_wandb_run_of_the_calling_program_is_left_alone(tmp_path):
    import wandb

    (tmp_path / "own").mkdir()
    own = wandb.init(project="own", dir=tmp_path / "own", settings=wandb.Settings(silent=True))
    try:
        run = made_run(tmp_path, "--run.loggers=[wandb]")
        assert wandb.run is own
        own.log({"x": 1})  # raises if it has been finished
    finally:
        own.finish()
    assert tracked.of_wandb(run) == tracked.of_metrics(run)


def test_a_wandb_server_that_does_not_answer_makes_the_run_offline(tmp_path, monkeypatch, caplog):
    import wandb

    wandb.teardown()  # it keeps the environment that it found first
    monkeypatch.setattr(wandb_run, "_BEGIN_SEC", 1.0)
    monkeypatch.setattr(sender, "CLOSE_SEC", PATIENCE_SEC)  # less than W&B itself waits: 90 s
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with caplog.at_level(logging.WARNING, logger="trainyard"):
            run = made_run(tmp_path, "--run.loggers=[wandb]")
        wandb.teardown()
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "wandb of run.loggers is offline: " in warning
    assert tracked.of_wandb(run) == tracked.of_metrics(run)


# A password in an address.


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("http://me:word@host:5000/api failed", "http://host:5000/api failed"),
        ("postgresql://me:w@rd@host/runs", "postgresql://host/runs"),
        ("https://host/a@b and user@host", "https://host/a@b and user@host"),
    ],
)
def test_an_address_is_written_without_its_user_and_password(said, written):
    assert without_secret(said) == written


def test_a_password_of_mlflow_is_in_no_file_and_in_no_line(tmp_path, monkeypatch, caplog):
    from mlflow.tracking import MlflowClient

    class Client(MlflowClient):
        """MLflow's files in the place of a server."""

        def __init__(self, place: str) -> None:
            assert place == "http://me:word@127.0.0.1:1"
            super().__init__((tmp_path / "server").as_uri())

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@127.0.0.1:1")
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        made_run(tmp_path, "--run.loggers=[mlflow]")  # nobody listens there
        assert "mlflow of run.loggers failed (API request to http://127.0.0.1:1/" in caplog.text
        with monkeypatch.context() as now:
            now.setattr("mlflow.tracking.MlflowClient", Client)
            run = made_run(tmp_path, "--run.loggers=[mlflow]")
            identity = (run / "mlflow.json").read_text()
            made_run(tmp_path, "--run.loggers=[mlflow]", positions=(30,), start=20)
    assert json.loads(identity)["place"] == "http://127.0.0.1:1"
    assert (run / "mlflow.json").read_text() == identity  # the same place, so the same run
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(b"me:word" in text for text in [*written, caplog.text.encode()])


# Libraries.


def test_a_folder_of_a_librarys_name_is_no_library(tmp_path, monkeypatch):
    """W&B leaves a folder `wandb` wherever it was used, which Python takes for a package."""
    (tmp_path / "tracker").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(
        loggers, "_PACKAGES", {"tracker": "tracker-python", "tensorboard": "tensorboard"}
    )
    with pytest.raises(ConfigError, match="names tracker, whose library is not installed"):
        loggers.require_installed(("tracker",))
    loggers.require_installed(("tensorboard",))


def test_a_logger_that_cannot_begin_warns_and_the_run_ends_well(
    small_data, tmp_path, monkeypatch, caplog
):
    def unfit(begin: object) -> Observer:
        raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setattr(loggers, "_OPEN", {**loggers._OPEN, "tensorboard": unfit})
    monkeypatch.setattr("pipeline.train.run.start_logging", lambda rank: None)
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        run = train_here(small_data, tmp_path, "--run.loggers=[tensorboard,csv]")
    assert [r.getMessage() for r in caplog.records if "run.loggers" in r.getMessage()] == [
        "warning: tensorboard of run.loggers failed (Descriptors cannot be created directly) and "
        "gets nothing from this start; training continues"
    ]
    assert read_metrics(run / "metrics.jsonl")[-1]["event"] == "done"
    assert tracked.of_csv(run) == tracked.of_metrics(run)


# The end of a job.


def test_trackers_are_waited_for_together(tmp_path):
    class Ends(Tracker):
        done: bool | None = None

        def open(self):
            pass

        def send(self, line):
            pass

        def close(self, done):
            self.done = done

    tracker, events = Ends(), []
    to = Sender("far", tracker, [])

    class Slow(Observer):
        """Closed before the other; ends when that has ended."""

        def close(self):
            to._thread.join(PATIENCE_SEC)
            events.append(tracker.done)

    config = config_of(tmp_path, tmp_path, "--run.loggers=[]")
    config.run.path.mkdir()
    monitor = RunMonitor(RunFolder(config.run.path), config, 0, 0, 100, observers=(to, Slow()))
    monitor.write("done", line("done", 100))
    monitor.close()
    assert events == [True]


def test_the_watchdog_leaves_loggers_the_time_that_they_may_take(small_data, tmp_path, monkeypatch):
    limits, real = [], Watchdog._limit_is

    def limit_is(self, limit):
        limits.append(limit.sec)
        real(self, limit)

    class Last(Observer):
        def close(self):
            limits.append("close")

    monkeypatch.setattr(Watchdog, "_limit_is", limit_is)
    monkeypatch.setattr(loggers, "_OPEN", {**loggers._OPEN, "csv": lambda begin: Last()})
    train_here(small_data, tmp_path, "--run.loggers=[csv]", "--run.start_timeout_sec=90")
    assert limits[limits.index("close") - 1] == 90 + sender.DONE_SEC
