"""A run in MLflow: its settings as parameters, its numbers as metrics by images seen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from pipeline.config import Config
from pipeline.config.setting import shown
from pipeline.system.files import write_text
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.guarded import without_secret
from pipeline.train.monitor.observer import numbers
from pipeline.train.monitor.sender import Line, Tracker

_PLACE, _EXPERIMENT, _ITS_ID = (
    "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"
)  # fmt: skip
_FILES_ALLOWED = "MLFLOW_ALLOW_FILE_STORE"
_NO_WORDS = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
_NAME = "trainyard"
_LONGEST = 500  # characters of a parameter: servers before MLflow 2.8 refuse more
_AT_ONCE = 100  # parameters in a request, MLflow's limit


class MlflowRun(Tracker):
    """The run at `MLFLOW_TRACKING_URI`, in the experiment of `MLFLOW_EXPERIMENT_NAME`.

    Without the first, in MLflow's files beside the runs: a file of a database, which MLflow would
    choose, is not for several jobs on a network file system. A `new` run gets an identity, which
    the run's folder keeps.
    """

    def __init__(self, run: RunFolder, config: Config, new: bool) -> None:
        self._folder, self._config, self._new = run, config, new
        self._client: Any = None
        self._id = ""
        self._held: dict[str, set[int]] = {}

    def open(self) -> None:
        place = os.environ.get(_PLACE) or None
        if place is None:
            # MLflow keeps its files as they are, and asks to be told that they are meant (3.7).
            os.environ.setdefault(_FILES_ALLOWED, "true")
        os.environ.setdefault(_NO_WORDS, "true")  # a progress bar is no place for it
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(place or self._folder.mlruns.absolute().as_uri())
        earlier = self._earlier(place)
        if earlier is not None and self._new:
            self._client.set_terminated(earlier, "KILLED")
        elif earlier is not None:
            self._id = earlier
            self._client.update_run(earlier, status="RUNNING")
            self._held = self._points()
            return
        run = self._client.create_run(self._experiment(), run_name=self._config.run.name)
        self._id = run.info.run_id
        kept = json.dumps({"place": _kept(place), "run_id": self._id})
        write_text(self._folder.mlflow_id, kept + "\n")
        for params in self._parameters():
            self._client.log_batch(self._id, params=params)

    def send(self, line: Line) -> None:
        from mlflow.entities import Metric

        at, time_ms = line["position"], int(line["time"] * 1000)
        new = [
            Metric(tag, float(value), time_ms, at)
            for tag, value in numbers(line)
            if at not in self._held.get(tag, ())
        ]
        if new:
            self._client.log_batch(self._id, metrics=new)

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")

    def _earlier(self, place: str | None) -> str | None:
        """The identity that earlier starts had at this place, if it has a run of that."""
        from mlflow.exceptions import MlflowException

        try:
            kept = json.loads(self._folder.mlflow_id.read_text(encoding="utf-8"))
            if kept["place"] != _kept(place):
                return None
            return str(self._client.get_run(kept["run_id"]).info.run_id)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _points(self) -> dict[str, set[int]]:
        """Where each curve has points already. MLflow takes none back, and would draw a second one
        at the same place."""
        names = self._client.get_run(self._id).data.metrics
        return {
            name: {point.step for point in self._client.get_metric_history(self._id, name)}
            for name in names
        }

    def _experiment(self) -> str:
        if number := os.environ.get(_ITS_ID):
            return number
        from mlflow.exceptions import MlflowException

        name = os.environ.get(_EXPERIMENT) or _NAME
        found = self._client.get_experiment_by_name(name)
        try:
            return str(found.experiment_id if found else self._client.create_experiment(name))
        except MlflowException:  # another run has just created it
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _parameters(self) -> Iterator[Sequence[Any]]:
        from mlflow.entities import Param

        params = (Param(n, shown(v)[:_LONGEST]) for n, v in self._config.values().items())
        while some := list(islice(params, _AT_ONCE)):
            yield some


def _kept(place: str | None) -> str | None:
    """What the run's folder says of `place`: also a database's address has a password in it."""
    return None if place is None else without_secret(place)
