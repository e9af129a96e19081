"""`Monitor`, the one place to report what happened; rank 0's writes all the files of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.data.dali import Batch
from pipeline.system.console import log
from pipeline.system.files import PatientFile, Room, replacing
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.loggers import Beginning, open_loggers
from pipeline.train.monitor.observer import Observer
from pipeline.train.monitor.pictures import Pictures
from pipeline.train.monitor.progress import Progress, val_line
from pipeline.train.validation import ErrorAnalysis

Metrics = Mapping[str, Any]


class Monitor:
    """The monitor of ranks other than 0: writes nothing."""

    def write(self, event: str, metrics: Metrics) -> None:
        """Writes one line of metrics.jsonl: `start` says what this start of the run trains, on what
        and how far, and `done` is the run's last. Raises `ValueError` for a number that JSON does
        not have."""

    def train(self, metrics: Metrics, verdict: str = "") -> None:
        """Writes one line of training metrics, and what limits the training."""

    def val(self, metrics: Metrics, analysis: ErrorAnalysis | None = None) -> None:
        """Writes one validation's result and its mistakes."""

    def images(self, batch: Batch, position: int) -> None:
        """Writes a few images of the next step, at the start of an epoch or of the job."""

    def advance(self, position: int) -> None:
        """Moves the progress bar."""

    def close(self) -> None:
        """Closes all files."""


class RunMonitor(Monitor):
    """Writes the files of one run, with `pictures` if there are any to be drawn.

    `position` is where the run resumes: what an earlier start wrote beyond it is removed,
    so that no step appears twice. `validations` is how many the checkpoint knows of; `top5` whether
    that is counted. `observers` see every line that is written.
    """

    def __init__(
        self, run: RunFolder, config: Config, position: int, validations: int, total_images: int,
        room: Room | None = None, pictures: Pictures | None = None, top5: bool = True,
        observers: Sequence[Observer] = (),
    ) -> None:  # fmt: skip
        room = room or Room(run.path)
        self._pictures = pictures
        if any(run.tensorboard.glob("*")) and not run.metrics.exists():
            log.warning(
                "warning: %s is missing in %s and starts over at %d images seen: reports miss what "
                "came before, and TensorBoard keeps its curves",
                run.metrics.name, run.path, position,
            )  # fmt: skip
        kept = _keep_lines(run, position, validations)
        self._file = PatientFile(run.metrics, room)
        loggers = open_loggers(Beginning(run, config, position, kept, room, top5))
        self._observers = (*loggers, *observers)
        self._progress = Progress(total_images, position)

    def write(self, event: str, metrics: Metrics) -> None:
        stamped = {"event": event, **metrics, "time": time.time()}
        self._file.write((json.dumps(stamped, allow_nan=False) + "\n").encode())
        for observer in self._observers:
            observer.see(stamped)

    def train(self, metrics: Metrics, verdict: str = "") -> None:
        self.write("train", metrics)
        self._progress.train(metrics, verdict)

    def val(self, metrics: Metrics, analysis: ErrorAnalysis | None = None) -> None:
        self.write("val", metrics)
        log.info("%s", val_line(metrics))
        if analysis is not None and self._pictures is not None and self._are_wanted:
            with _no_more_than_a_picture():
                for tag, pixels in self._pictures.of_validation(analysis):
                    self._show(tag, pixels, metrics["position"])

    def images(self, batch: Batch, position: int) -> None:
        if self._pictures is not None and self._are_wanted:
            with _no_more_than_a_picture():
                self._show("train/augmented", self._pictures.of_batch(batch), position)

    @property
    def _are_wanted(self) -> bool:
        return any(observer.wants_pictures for observer in self._observers)

    def _show(self, tag: str, pixels: np.ndarray, position: int) -> None:
        for observer in self._observers:
            if observer.wants_pictures:
                observer.picture(tag, pixels, position)

    def advance(self, position: int) -> None:
        self._progress.move(position)
        for observer in self._observers:
            observer.advance(position)

    def close(self) -> None:
        with ExitStack() as ends:  # all of them, whatever one raises
            for close in (self._file.close, self._progress.close):
                ends.callback(close)
            for observer in self._observers:
                ends.callback(observer.close)
            for observer in self._observers:
                ends.callback(observer.begin_close)  # the last come first


@contextmanager
def _no_more_than_a_picture() -> Iterator[None]:
    """Turns an error into a warning: only rank 0 draws, the others are already in the next
    collective, so an error must cost the picture, not the run."""
    try:
        yield
    except Exception as error:
        log.warning("warning: a picture for TensorBoard is left out: %s", error)


def _keep_lines(run: RunFolder, position: int, validations: int) -> list[dict[str, Any]]:
    """Rewrites the metrics without lines beyond the checkpoint; returns the rest."""
    kept, seen = [], 0
    for metrics in run.lines():
        seen += metrics["event"] == "val"
        beyond = metrics["event"] == "val" and seen > validations
        if metrics["position"] <= position and not beyond and metrics["event"] != "done":
            kept.append(metrics)
    text = "".join(json.dumps(metrics) + "\n" for metrics in kept)
    if run.metrics.exists() and run.metrics.read_bytes() != text.encode():
        with replacing(run.metrics) as new:
            new.write_text(text, encoding="utf-8")
    return kept
