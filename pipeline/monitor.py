"""What people look at: console, log.txt, metrics.jsonl and TensorBoard, written by rank 0.

The horizontal axis everywhere is the position: images seen by the whole job.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.config import Config, setting_names

log = logging.getLogger("trainyard")
files_log = logging.getLogger("trainyard.files")  # what a rank's own file system does

Metrics = Mapping[str, int | float | None]

_NOT_DRAWN = ("event", "time", "step", "position", "images")  # axes and labels, not curves


class _LineFormatter(logging.Formatter):
    """Time and message; a line of error stands bare, so that it starts with `error:`."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.ERROR:
            return record.getMessage()
        return f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {record.getMessage()}"


class _ConsoleHandler(logging.Handler):
    """Information to stdout, the rest to stderr; leaves a progress bar whole."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except OSError:
            pass  # A launcher that is ending has closed the pipe; log.txt still gets the line.


class _OtherRankFormatter(logging.Formatter):
    """Says whose warning it is; a line of error stands bare, as on rank 0."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._own = f"rank {rank} on {socket.gethostname()}"

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.ERROR:
            return record.getMessage()
        return f"{self._own}: {record.getMessage()}"


def start_logging(rank: int) -> None:
    """Rank 0 says everything; the others only what they alone know: errors, and what their file
    system refuses, as a node's mount may fail for its own ranks only.

    All other warnings are of what every rank sees alike.
    """
    for handler in list(log.handlers):
        log.removeHandler(handler)
    handler = _ConsoleHandler()
    if rank != 0:
        handler.setFormatter(_OtherRankFormatter(rank))
    log.addHandler(handler)
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    # A level of its own, which comes before the one above; its lines go to the same handlers.
    files_log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    log.propagate = False
    logging.raiseExceptions = False  # a full disk under log.txt must not end the training


def log_to_file(run_dir: Path) -> None:
    """Adds `log.txt` of the run to where rank 0 writes."""
    handler = logging.FileHandler(run_dir / "log.txt", encoding="utf-8")
    handler.setFormatter(_LineFormatter())
    log.addHandler(handler)


class Monitor:
    """What a rank other than 0 has: nothing is written."""

    def train(self, metrics: Metrics) -> None:
        """One line of training metrics."""

    def val(self, metrics: Metrics) -> None:
        """One validation's result."""

    def done(self, metrics: Metrics) -> None:
        """The run's last line."""

    def images(self, images: np.ndarray, position: int) -> None:
        """A grid of augmented training images, (B, H, W, 3) uint8."""

    def advance(self, position: int) -> None:
        """Moves the progress bar."""

    def close(self) -> None:
        """Flushes and closes all files."""


class RunMonitor(Monitor):
    """Writes the files of one run.

    `position` is where the run goes on: what was written beyond it by an earlier start is taken
    back, so that no step appears twice. `validations` is how many the checkpoint knows of.
    """

    def __init__(
        self, run_dir: Path, config: Config, position: int, validations: int, total_images: int
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        kept = _keep_lines(self._path, position, validations)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        _wait_for_a_new_second(run_dir / "tensorboard")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=position)
        for metrics in kept:
            # purge_step takes back `position` itself too, which must stay.
            if metrics["position"] >= position:
                self._draw(metrics)
        if position == 0:
            self._describe(config)
        self._bar = tqdm(
            total=total_images, initial=position, unit="img", unit_scale=True,
            disable=not sys.stdout.isatty(), file=sys.stdout, dynamic_ncols=True,
        )  # fmt: skip

    def _describe(self, config: Config) -> None:
        from torch.utils.tensorboard.summary import hparams

        self._board.add_text("config", f"```yaml\n{config.to_yaml()}```", 0)
        settings = {name: config.get(name) for name in setting_names()}
        values = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        writer = self._board.file_writer
        assert writer is not None
        for summary in hparams(values, {"val/top1": None, "val/top5": None}):
            writer.add_summary(summary)

    def train(self, metrics: Metrics) -> None:
        self._write({"event": "train", **metrics})
        now: Mapping[str, Any] = metrics
        self._bar.set_postfix_str("loss {loss:.3f} top1 {top1:.3f}".format(**now))
        if self._bar.disable:
            line = (
                "epoch {epoch} step {step} loss {loss:.4f} top1 {top1:.4f} lr {lr:.5g} "
                "{images_per_sec:.0f} img/s data wait {data_wait_share:.1%}"
            )
            log.info(line.format(**now))

    def val(self, metrics: Metrics) -> None:
        self._write({"event": "val", **metrics})
        line = (
            "epoch {epoch} validation: top1 {top1:.4f} top5 {top5:.4f} loss {loss:.4f} "
            "({images} images)"
        )
        log.info(line.format(**metrics))

    def done(self, metrics: Metrics) -> None:
        self._write({"event": "done", **metrics})

    def images(self, images: np.ndarray, position: int) -> None:
        side = int(len(images) ** 0.5)
        rows = [np.concatenate(list(images[r * side : (r + 1) * side]), 1) for r in range(side)]
        self._board.add_image(
            "train/augmented", np.concatenate(rows, 0), position, dataformats="HWC"
        )

    def advance(self, position: int) -> None:
        self._bar.update(position - self._bar.n)

    def close(self) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()

    def _write(self, metrics: dict[str, Any]) -> None:
        stamped = {**metrics, "time": time.time()}
        self._file.write(json.dumps(stamped, allow_nan=False) + "\n")
        self._file.flush()
        self._draw(stamped)
        self._board.flush()

    def _draw(self, metrics: Mapping[str, Any]) -> None:
        if metrics["event"] == "done":
            return
        for name, value in metrics.items():
            if name not in _NOT_DRAWN and value is not None:
                tag = f"{metrics['event']}/{name}"
                self._board.add_scalar(tag, value, metrics["position"], walltime=metrics["time"])


def _wait_for_a_new_second(board: Path) -> None:
    """TensorBoard reads event files in the order of their names, which begin with the second they
    were made in: this start's must come after the one before, or it would take back the wrong
    steps."""
    started = [int(file.name.split(".")[3]) for file in board.glob("events.out.tfevents.*")]
    if started and max(started) == int(time.time()):
        time.sleep(1.0)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a `metrics.jsonl`; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    metrics = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("warning: a line of %s is cut and left out", path)
    return metrics


def _keep_lines(path: Path, position: int, validations: int) -> Sequence[dict[str, Any]]:
    """Rewrites the file without what lies beyond the checkpoint; returns what stays."""
    kept, seen = [], 0
    for metrics in read_metrics(path):
        seen += metrics["event"] == "val"
        beyond = metrics["event"] == "val" and seen > validations
        if metrics["position"] <= position and not beyond and metrics["event"] != "done":
            kept.append(metrics)
    if path.exists():
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")
        os.replace(partial, path)
    return kept
