"""A run at W&B (Weights & Biases): its settings, and its numbers by images seen."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, plain
from pipeline.system.files import write_text
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.guarded import without_secret
from pipeline.train.monitor.observer import numbers
from pipeline.train.monitor.sender import CLOSE_SEC, Line, Tracker

log = logging.getLogger("trainyard")

_PROJECT = "trainyard"
_BEGIN_SEC = 20.0
"""How long a server may take to begin a run, before the run is offline."""


class WandbRun(Tracker):
    """The run in the project `WANDB_PROJECT`, with a key or, without one, in files to be uploaded
    later. A `new` run gets an identity, which the run's folder keeps.

    A step of W&B is a line: twice the images seen, and one more for a validation. W&B takes steps
    that rise and leaves out others, so a resumed run adds what it does not have.
    """

    def __init__(self, run: RunFolder, config: Config, new: bool) -> None:
        self._folder, self._config = run, config
        self._id = self._identity(new)
        self._run: Any = None

    def open(self) -> None:
        import wandb

        earlier = list(self._folder.wandb.glob(f"offline-run-*-{self._id}"))
        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode == "online":
            try:
                if not wandb.login(prompt=False, verify=False):
                    raise wandb.errors.UsageError(
                        "there is no API key: set WANDB_API_KEY, or run wandb login"
                    )
                self._begin(mode)
            except wandb.errors.Error as error:
                reason = without_secret(" ".join(str(error).split()))
                log.warning(
                    "warning: wandb of run.loggers is offline: %s; training continues, and "
                    "wandb sync uploads what is kept in %s", reason, self._folder.wandb,
                )  # fmt: skip
                if wandb.run is None:  # else a run of the program that calls this one ends with it
                    wandb.teardown()  # its service holds the run's identity, which has failed
                self._begin("offline")
        else:
            self._begin(mode)
        # Each start has all lines, from the first on: without a server W&B cannot tell which ones
        # it has, and a kill leaves hardly any in a file (0.31).
        if mode != "disabled":
            _remove(earlier)

    def send(self, line: Line) -> None:
        step = 2 * line["position"] + (line["event"] == "val")
        if step >= self._run.starting_step:
            axes = {"position": line["position"], "_timestamp": line["time"]}
            self._run.log({**dict(numbers(line)), **axes}, step=step)

    def close(self, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)

    def _begin(self, mode: Any) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT, name=self._config.run.name,
            id=self._id, resume="allow", mode=mode, dir=self._folder.path,
            config={name: plain(value) for name, value in self._config.values().items()},
            allow_val_change=True,
            reinit="create_new",  # a program that calls this one may have a run of its own
            settings=wandb.Settings(
                # log.txt has what is said, and the progress bar is no line.
                console="off", silent=True,
                # At its exit a process waits for W&B, also for a beginning that hangs (0.31).
                init_timeout=_BEGIN_SEC, finish_timeout=CLOSE_SEC,
            ),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="position")
        if mode == "online":
            log.info("W&B shows the run at %s", self._run.url)

    def _identity(self, new: bool) -> str:
        path = self._folder.wandb_id
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["run_id"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            kept = None
        if new or not isinstance(kept, str):
            kept = secrets.token_hex(8)
            write_text(path, json.dumps({"run_id": kept}) + "\n")
        return kept


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
