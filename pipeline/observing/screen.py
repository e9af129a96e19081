"""Where a run that is followed is shown: lines anywhere, and on a terminal its progress bar."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from pipeline.monitor.progress import Progress
from pipeline.observing.state import RunState
from pipeline.verdict import Figures, kind_of


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
        tqdm.write(line)
        sys.stdout.flush()

    def warn(self, word: str) -> None:
        tqdm.write(f"warning: {word}", file=sys.stderr)

    def show(self, run: RunState) -> None:
        metrics, batch = run.latest, run.settings.get("data.global_batch_size")
        if run.state not in ("running", "silent") or not metrics or metrics == self._shown:
            return
        if run.total_steps is None or batch is None:
            return
        try:
            position, limit = int(metrics["position"]), verdict(metrics)
            self._bar = self._bar or Progress(run.total_steps * batch, position)
            self._bar.advance(position)
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


def verdict(metrics: Mapping[str, Any]) -> str:
    """What limits a training by a line of its metrics, in the run's own word for it: it hangs on
    the shares of the step that wait. Raises KeyError for a line without them."""
    waits = Figures(
        data_wait_share=metrics["data_wait_share"],
        exposed_communication_share=metrics["communication_share"],
    )
    return kind_of(waits)
