"""Following a run from outside: what it says, line by line, until it ends."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.failure import ExitCode
from pipeline.monitor.progress import TRAIN_LINE
from pipeline.observing.state import RunState, read_state

_LOOK_SEC = 0.5
_WORD_SEC = 5.0
"""The ranks that a killed one leaves behind need so long to write why the job ended."""
_LINES_BEFORE = 10

_CODES = {"finished": ExitCode.FINISHED, "stopped": ExitCode.STOPPED}
_STEP = re.compile(r"\bstep (\d+) loss\b")


class Tail:
    """The lines that come to a text file, whole ones only. A file that is not there yet has none,
    and of one that is written anew only those count that were not in the old one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id = (0, 0)
        self._offset = 0
        self._seen: set[bytes] = set()

    def new_lines(self) -> list[str]:
        """What has come since the last call; first, all there is."""
        try:
            with open(self._path, "rb") as file:
                about = os.fstat(file.fileno())
                replaced = self._file_id != (about.st_dev, about.st_ino)
                if replaced or about.st_size < self._offset:
                    self._offset = 0
                    self._file_id = (about.st_dev, about.st_ino)
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        beginning = self._offset == 0
        self._offset += len(whole)
        lines = whole.splitlines()
        if beginning:  # time stands in every line: none comes twice
            lines = [line for line in lines if line not in self._seen]
        self._seen.update(lines)
        return [line.decode("utf-8", errors="replace") for line in lines]


class PlainLines:
    """A run as lines for people: its log.txt, and those lines of training that a progress bar
    has kept out of it."""

    def __init__(self, folder: Path) -> None:
        self._log, self._metrics = Tail(folder / "log.txt"), Tail(folder / "metrics.jsonl")
        self._waiting: list[str] = []
        self._logged: set[int] = set()
        self._metrics.new_lines()  # those of the past are in the log, or were on another screen

    def past(self) -> list[str]:
        """The last lines that were there before."""
        return self._logged_now()[-_LINES_BEFORE:]

    def new(self) -> list[str]:
        """What has come since. A line of metrics waits for one call: the log has it after that."""
        metrics = self._metrics.new_lines()
        log = self._logged_now()
        unlogged = [text for line in self._waiting if (text := self._plain(line))]
        self._waiting = metrics
        return unlogged + log

    def _logged_now(self) -> list[str]:
        """The log's new lines, whose steps need no line of metrics any more."""
        log = self._log.new_lines()
        self._logged.update(int(found[1]) for line in log if (found := _STEP.search(line)))
        return log

    def _plain(self, line: str) -> str | None:
        try:
            metrics = json.loads(line)
            if metrics["event"] != "train" or metrics["step"] in self._logged:
                return None
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(metrics["time"]))
            return f"{stamp} {TRAIN_LINE.format(**metrics)}"
        except (ValueError, KeyError, TypeError):
            return None  # cut, or of another version: not worth the follower's life


class MetricsLines:
    """A run as its lines of metrics, as they stand in the file."""

    def __init__(self, folder: Path) -> None:
        self._metrics = Tail(folder / "metrics.jsonl")

    def past(self) -> list[str]:
        """None: whoever wants them reads the file."""
        self._metrics.new_lines()
        return []

    def new(self) -> list[str]:
        """What has come since."""
        return self._metrics.new_lines()


def follow(
    folder: Path, source: PlainLines | MetricsLines, say: Callable[[str], object]
) -> tuple[RunState, ExitCode]:
    """Hands each new line of a run to `say` until the run has ended; at once if it has.

    Returns how it ended and the exit code of a job that ends so: 0 finished, 75 stopped, else 1.
    """
    for line in source.past():
        say(line)
    given_up = None
    while True:
        run = read_state(folder)
        for line in source.new():
            say(line)
        now = time.monotonic()
        if run.state == "interrupted":
            given_up = given_up or now + (_WORD_SEC if (run.age_sec or 0.0) < 60.0 else 0.0)
        elif run.state == "running":
            given_up = None
        if run.state != "running" and (run.state != "interrupted" or now >= (given_up or now)):
            break
        time.sleep(_LOOK_SEC)
    for _ in range(2):  # the last line of metrics waits for one call
        for line in source.new():
            say(line)
    failed_later = run.state == "finished" and bool(run.note)
    return run, ExitCode.FAILED if failed_later else _CODES.get(run.state, ExitCode.FAILED)
