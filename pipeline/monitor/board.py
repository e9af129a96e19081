"""TensorBoard's part of a run: curves, pages, pictures and hyperparameters, by images seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.monitor.event_file import EventFile, event_files, events_at
from pipeline.monitor.layout import STACKED, layout_summary, stacked_tag
from pipeline.monitor.patient_file import Room

_NOT_DRAWN = ("event", "time", "step", "position", "images")  # axes and labels, not curves
# The table of hyperparameters shows the first five by name unless others are ticked, so what says
# nothing about a result is left out of it; the text `config` has every setting.
_COMPARED_SETTINGS = (
    "data.global_batch_size", "model.depth", "model.family", "model.residual", "model.shortcut",
    "model.variant", "optim.amp", "optim.base_lr", "optim.label_smoothing", "optim.momentum",
    "optim.weight_decay", "run.seed", "schedule.epochs", "schedule.rule", "schedule.warmup_epochs",
)  # fmt: skip
_COMPARED_METRICS = ("val/best_top1", "val/top1", "val/top5", "val/loss", "train/images_per_sec")


class Board:
    """The event files of a run that goes on at `position`, and stood there with the lines `kept`.

    What an earlier start drew beyond is taken back by TensorBoard itself.
    """

    def __init__(
        self, folder: Path, position: int, kept: Sequence[Mapping[str, Any]], room: Room
    ) -> None:
        # The session's start takes back `position` itself too, where this must stay.
        here = [metrics for metrics in kept if metrics["position"] >= position]
        validated = any(metrics["event"] == "val" for metrics in here)
        pictures = list(_val_pictures(folder, position)) if validated else []
        self.is_new = position == 0 or not event_files(folder)
        """Whether nothing of the run's beginning is there: it starts, with a checkpoint perhaps."""
        self._file = EventFile(folder, position, room)
        self._pages_due = not any(metrics["event"] == "train" for metrics in kept)
        for metrics in here:
            self.draw(metrics)
        for event in pictures:
            self._file.add(event.summary, event.step, event.wall_time)

    def describe(self, config: Config) -> None:
        """At the start of a run: its settings."""
        from torch.utils.tensorboard.summary import hparams, text

        settings = {name: config.get(name) for name in _COMPARED_SETTINGS}
        values = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        words = text("config", f"```yaml\n{config.to_yaml()}```")  # type: ignore[no-untyped-call]
        compared = hparams(values, dict.fromkeys(_COMPARED_METRICS))  # type: ignore[no-untyped-call]
        for summary in (words, *compared):
            self._file.add(summary, 0)

    def draw(self, metrics: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl as one event: its numbers, and what charts need beside them."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if metrics["event"] == "done":
            return
        if self._pages_due and metrics["event"] == "train":
            self._pages_due = False
            self._file.add(layout_summary(gpu="gpu_memory_torch_bytes" in metrics), 0)
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in curves(metrics)]
        self._file.add(Summary(value=values), metrics["position"], metrics["time"])

    def picture(self, tag: str, pixels: np.ndarray, position: int) -> None:
        """An image (H, W, 3) uint8."""
        from torch.utils.tensorboard.summary import image

        summary = image(tag, pixels, dataformats="HWC")  # type: ignore[no-untyped-call]
        self._file.add(summary, position)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def curves(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of every curve that a line of metrics is a point of.

    Beside its own numbers: the error, which the paper draws, and the upper edges of the stack.
    """
    event = metrics["event"]
    for name, value in metrics.items():
        if name not in _NOT_DRAWN and value is not None:
            yield f"{event}/{name}", value
    yield f"{event}/error", 1.0 - metrics["top1"]
    if f"share_{STACKED[0]}" in metrics:
        shares = [0.0] + [metrics[f"share_{name}"] for name in STACKED]
        for number, edge in enumerate(accumulate(shares), start=-1):
            yield stacked_tag(number), edge


def require_own(folder: Path, metrics_path: Path) -> None:
    """Raises `ValueError` if `folder` has event files that no start of this run can have written:
    each makes the run's metrics.jsonl first."""
    if event_files(folder) and not metrics_path.exists():
        raise ValueError(
            f"{folder} holds event files of another run, for {metrics_path.parent} has no "
            f"{metrics_path.name}; move them away or choose another run.name"
        )


def _val_pictures(folder: Path, position: int) -> Iterator[Any]:
    """The events with a validation's pictures at `position`, which metrics.jsonl does not have."""
    for event in events_at(folder, position):
        if any(v.tag.startswith("val/") and v.HasField("image") for v in event.summary.value):
            yield event
