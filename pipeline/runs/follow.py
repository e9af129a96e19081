"""Follows a run: prints its log, line by line, until it ends."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.runs.state import RunReader, RunState
from pipeline.runs.tail import NewLines
from pipeline.system.console import say, write_line
from pipeline.system.failure import ExitCode
from pipeline.system.words import printable
from pipeline.train.monitor.progress import Progress
from pipeline.train.verdict import kind_of, seen

_LOOK_SEC = 0.5
_WORD_SEC = 5.0
"""Time that the surviving ranks of a killed one need to write why the job ended."""

_ENDS = ("finished", "stopped", "failed")
_CODES = {"finished": ExitCode.FINISHED, "stopped": ExitCode.STOPPED}


def follow(folder: Path, file: Path, past: int, screen: Screen) -> tuple[RunState, ExitCode]:
    """Shows the last `past` lines of a run's `file` on `screen`, and each new one until the run has
    ended; at once if it has.

    A silent run may still be alive: that is warned of, once for each silence. Returns how the run
    ended and the exit code of a job that ends so: 0 finished, 75 stopped, else 1.
    """
    lines = NewLines(file)
    for line in deque(lines(), maxlen=past):
        screen.say(line)
    reader, given_up, silent = RunReader(folder), None, False
    while True:
        run = reader.read()
        for line in lines():
            screen.say(line)
        screen.show(run)
        now = time.monotonic()
        if run.state == "silent" and not silent:
            word = f"{folder}: {run.note}; whether it continues is not known, so it is followed on"
            screen.warn(word)
        silent = run.state == "silent"
        if run.state == "interrupted":
            given_up = given_up or now + (_WORD_SEC if (run.age_sec or 0.0) < 60.0 else 0.0)
        else:
            given_up = None
        if run.state in _ENDS or (given_up is not None and now >= given_up):
            break
        time.sleep(_LOOK_SEC)
    for line in lines():
        screen.say(line)
    failed_later = run.state == "finished" and bool(run.note)
    return run, ExitCode.FAILED if failed_later else _CODES.get(run.state, ExitCode.FAILED)


class Screen:
    """Plain lines, for pipes and files."""

    def say(self, line: str) -> None:
        """Shows a line of the run."""
        write_line(printable(line), sys.stdout)  # raises for a closed pipe: nobody follows then

    def warn(self, word: str) -> None:
        """Shows a warning, which is not a line of the run."""
        say(f"warning: {word}", stream=sys.stderr)

    def show(self, run: RunState) -> None:
        """Shows the present state of the run."""

    def close(self) -> None:
        """Ends the output."""


class LiveScreen(Screen):
    """A terminal: the lines, and below them the bar that the run itself would show, with epoch,
    loss, top-1, img/s, time left and verdict as of its last line of training metrics."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._shown: Mapping[str, Any] = {}

    def say(self, line: str) -> None:
        say(line)

    def warn(self, word: str) -> None:
        say(f"warning: {word}", stream=sys.stderr)

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
