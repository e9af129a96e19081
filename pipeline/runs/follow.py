"""Following a run from outside: what it says, line by line, until it ends."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.runs.state import RunReader, RunState
from pipeline.runs.tail import NewLines
from pipeline.system.console import say
from pipeline.system.failure import ExitCode
from pipeline.train.monitor.progress import Progress, train_line
from pipeline.train.verdict import kind_of, seen

_LOOK_SEC = 0.5
_WORD_SEC = 5.0
"""The ranks that a killed one leaves behind need so long to write why the job ended."""
_LINES_BEFORE = 10

_ENDS = ("finished", "stopped", "failed")
_CODES = {"finished": ExitCode.FINISHED, "stopped": ExitCode.STOPPED}
_TRAINED = re.compile(r"\bepoch \d+ step \d+ loss\b.*")


class PlainLines:
    """A run as lines for people: its log.txt, and those lines of training that a progress bar
    has kept out of it."""

    def __init__(self, folder: Path) -> None:
        self._log, self._metrics = NewLines(folder / "log.txt"), NewLines(folder / "metrics.jsonl")
        self._waiting: list[str] = []
        # By their text, as a later start may take the same steps again.
        self._logged: set[str] = set()
        self._metrics()  # those of the past are in the log, or were on another screen

    def past(self) -> list[str]:
        """The last lines that were there before."""
        return self._logged_now()[-_LINES_BEFORE:]

    def new(self) -> list[str]:
        """What has come since. A line of metrics waits for one call: the log has it after that."""
        metrics = self._metrics()
        log = self._logged_now()
        unlogged = [text for line in self._waiting if (text := self._plain(line))]
        self._waiting = metrics
        return unlogged + log

    def _logged_now(self) -> list[str]:
        """The log's new lines; those of training need no line of metrics any more."""
        log = self._log()
        self._logged.update(found[0] for line in log if (found := _TRAINED.search(line)))
        return log

    def _plain(self, line: str) -> str | None:
        try:
            metrics = json.loads(line)
            if metrics["event"] != "train" or (text := train_line(metrics)) in self._logged:
                return None
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(metrics["time"]))
            return f"{stamp} {text}"
        except (ValueError, KeyError, TypeError):
            return None  # cut, or of another version: not worth the follower's life


class MetricsLines:
    """A run as its lines of metrics, as they stand in the file."""

    def __init__(self, folder: Path) -> None:
        self._metrics = NewLines(folder / "metrics.jsonl")

    def past(self) -> list[str]:
        """None: whoever wants them reads the file."""
        self._metrics()
        return []

    def new(self) -> list[str]:
        """What has come since."""
        return self._metrics()


def follow(
    folder: Path, source: PlainLines | MetricsLines, screen: Screen
) -> tuple[RunState, ExitCode]:
    """Shows each new line of a run on `screen` until the run has ended; at once if it has.

    A run that is silent may go on: that is warned of, once for each silence. Returns how the run
    ended and the exit code of a job that ends so: 0 finished, 75 stopped, else 1.
    """
    for line in source.past():
        screen.say(line)
    reader, given_up, silent = RunReader(folder), None, False
    while True:
        run = reader.read()
        for line in source.new():
            screen.say(line)
        screen.show(run)
        now = time.monotonic()
        if run.state == "silent" and not silent:
            word = f"{folder}: {run.note}; whether it goes on is not known, so it is followed on"
            screen.warn(word)
        silent = run.state == "silent"
        if run.state == "interrupted":
            given_up = given_up or now + (_WORD_SEC if (run.age_sec or 0.0) < 60.0 else 0.0)
        else:
            given_up = None
        if run.state in _ENDS or (given_up is not None and now >= given_up):
            break
        time.sleep(_LOOK_SEC)
    for _ in range(2):  # the last line of metrics waits for one call
        for line in source.new():
            screen.say(line)
    failed_later = run.state == "finished" and bool(run.note)
    return run, ExitCode.FAILED if failed_later else _CODES.get(run.state, ExitCode.FAILED)


class Screen:
    """Plain lines, for pipes and files."""

    def say(self, line: str) -> None:
        """Shows a line of the run."""
        print(line, flush=True)

    def warn(self, word: str) -> None:
        """Shows what is to be known beside the run's own lines."""
        print(f"warning: {word}", file=sys.stderr, flush=True)

    def show(self, run: RunState) -> None:
        """The run now stands so."""

    def close(self) -> None:
        """No line comes any more."""


class LiveScreen(Screen):
    """A terminal: under the lines stands the bar that the run itself would show on one, with epoch,
    loss, top-1, img/s, time left and verdict as of its last line of training metrics."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._shown: Mapping[str, Any] = {}

    def say(self, line: str) -> None:
        say(line)

    def warn(self, word: str) -> None:
        say(f"warning: {word}", sys.stderr)

    def show(self, run: RunState) -> None:
        metrics, batch = run.latest, run.settings.get("data.global_batch_size")
        if run.state not in ("running", "silent") or not metrics or metrics == self._shown:
            return
        if run.total_steps is None or batch is None:
            return
        try:
            position, limit = int(metrics["position"]), kind_of(seen(metrics))
            self._bar = self._bar or Progress(run.total_steps * batch, position)
            self._bar.move(position)
            self._bar.train(metrics, limit)
            self._shown = metrics
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return  # a line of another version: not worth the follower's life

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def screen_for_stdout() -> Screen:
    """The screen that fits what this process writes to."""
    return LiveScreen() if sys.stdout.isatty() else Screen()
