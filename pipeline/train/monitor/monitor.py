"""One place to tell what happened: `Monitor`, which rank 0's writes into all its files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.system.console import log
from pipeline.system.files import Room
from pipeline.train.monitor.board import Board
from pipeline.train.monitor.identity import own_id
from pipeline.train.monitor.metrics_file import MetricsFile
from pipeline.train.monitor.progress import Progress, counted_from_one

Metrics = Mapping[str, int | float | None]


class Monitor:
    """What a rank other than 0 has: nothing is written."""

    def train(self, metrics: Metrics, verdict: str = "") -> None:
        """One line of training metrics, and what limits the training in a word."""

    def val(self, metrics: Metrics) -> None:
        """One validation's result."""

    def done(self, metrics: Metrics) -> None:
        """The run's last line."""

    def images(self, images: np.ndarray, position: int) -> None:
        """A grid of augmented training images, (B, H, W, 3) uint8."""

    def mistakes(
        self, images: np.ndarray, captions: Sequence[tuple[str, str]], position: int
    ) -> None:
        """Validation images (B, H, W, 3) uint8 that the network gets wrong, with their captions."""

    def classes(
        self, names: Sequence[str], hits: Sequence[int], images: Sequence[int], position: int
    ) -> None:
        """How many of each class's validation images are right."""

    def advance(self, position: int) -> None:
        """Moves the progress bar."""

    def close(self) -> None:
        """Closes all files."""


class RunMonitor(Monitor):
    """Writes the files of one run.

    `position` is where the run goes on: what was written beyond it by an earlier start is taken
    back, so that no step appears twice. `validations` is how many the checkpoint knows of.
    Raises `ValueError` if the run's folder has TensorBoard files of another run.
    """

    def __init__(
        self, run_dir: Path, config: Config, position: int, validations: int, total_images: int,
        room: Room | None = None,
    ) -> None:  # fmt: skip
        room = room or Room(run_dir)
        path, folder = run_dir / "metrics.jsonl", run_dir / "tensorboard"
        run_id = own_id(run_dir, folder, path, position)
        self._file = MetricsFile(path, position, validations, room)
        self._board = Board(folder, position, self._file.kept, room, run_id)
        if self._board.is_new:
            self._board.describe(config)
        self._progress = Progress(total_images, position)

    def train(self, metrics: Metrics, verdict: str = "") -> None:
        self._write("train", metrics)
        self._progress.train(metrics, verdict)

    def val(self, metrics: Metrics) -> None:
        self._write("val", metrics)
        line = (
            "epoch {epoch} validation: top1 {top1:.2%} top5 {top5:.2%} loss {loss:.4f} "
            "({images} images)"
        )
        log.info("%s", line.format(**counted_from_one(metrics)))

    def done(self, metrics: Metrics) -> None:
        self._write("done", metrics)

    def images(self, images: np.ndarray, position: int) -> None:
        from pipeline.train.monitor.pictures import grid

        self._board.picture("train/augmented", grid(images), position)

    def mistakes(
        self, images: np.ndarray, captions: Sequence[tuple[str, str]], position: int
    ) -> None:
        from pipeline.train.monitor.pictures import captioned

        if len(images):
            self._board.picture("val/mistakes", captioned(images, captions), position)

    def classes(
        self, names: Sequence[str], hits: Sequence[int], images: Sequence[int], position: int
    ) -> None:
        from pipeline.train.monitor.pictures import class_bars

        self._board.picture("val/classes", class_bars(names, hits, images), position)

    def advance(self, position: int) -> None:
        self._progress.move(position)

    def close(self) -> None:
        self._progress.close()
        self._board.close()
        self._file.close()

    def _write(self, event: str, metrics: Metrics) -> None:
        stamped: dict[str, Any] = {"event": event, **metrics, "time": time.time()}
        self._file.write(stamped)
        self._board.draw(stamped)
