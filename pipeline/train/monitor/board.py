"""TensorBoard's files of a run: curves and pictures by images seen."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, settings
from pipeline.system.files import PatientFile, Room
from pipeline.train.monitor.pages import STACKED, layout_summary, stacked_tag

_NOT_DRAWN = ("event", "time", "step", "position", "images")  # axes and labels, not curves
_LABELS = {None: "null", True: "true", False: "false"}
_COMPARED_METRICS = ("val/best_top1", "val/top1", "val/top5", "val/loss", "train/images_per_sec")


class Board:
    """The event files of a run that goes on at `position`, and stood there with the lines `kept`.

    What an earlier start drew beyond is taken back by TensorBoard itself; where no file of an
    earlier start is left, all of `kept` is drawn again.
    """

    def __init__(
        self,
        folder: Path,
        position: int,
        kept: Sequence[Mapping[str, Any]],
        room: Room,
        run_id: str,
    ) -> None:
        lost = not event_files(folder)
        # The session's start takes back `position` itself too, where this must stay.
        again = [metrics for metrics in kept if lost or metrics["position"] >= position]
        validated = any(metrics["event"] == "val" for metrics in again)
        pictures = list(_val_pictures(folder, position)) if validated else []
        self.is_new = position == 0 or lost
        """Whether nothing of the run's beginning is there: it starts, with a checkpoint perhaps."""
        self._file = EventFile(folder, position, room, run_id)
        self._pages_due = lost or not any(metrics["event"] == "train" for metrics in kept)
        for metrics in again:
            self.draw(metrics)
        for event in pictures:
            self._file.add(event.summary, event.step, event.wall_time)

    def describe(self, config: Config) -> None:
        """At the start of a run: its settings."""
        from torch.utils.tensorboard.summary import hparams, text

        words = text("config", f"```yaml\n{config.to_yaml()}```")  # type: ignore[no-untyped-call]
        values = compared_settings(config)
        tables = hparams(values, dict.fromkeys(_COMPARED_METRICS))  # type: ignore[no-untyped-call]
        # Of the length one is null. The table ticks the five columns that it begins with.
        asked = [n for n, said in settings().items() if said.asked and config.get(n) is not None]
        _put_first(tables[0], ("model.network", *asked))
        for summary in (words, *tables):
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


def compared_settings(config: Config) -> dict[str, int | float | str]:
    """What the table of hyperparameters compares runs by; the text `config` has every setting.

    What says nothing about a result is left out of it. A number stays one, all else is a label:
    TensorBoard shows true as 1.0000 (2.21).
    """
    from pipeline.model.network import network_name

    found: dict[str, int | float | str] = {"model.network": network_name(config.model)}
    for name, said in settings().items():
        if not (said.in_table or said.asked or said.of_network):
            continue
        value = config.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        found[name] = value if is_number else _LABELS.get(value, str(value))
    return found


def _put_first(experiment: Any, names: Sequence[str]) -> None:
    """Marks the settings that come first in the `experiment` of torch's `hparams`.

    TensorBoard sorts those that are said to differ before the rest, then by name.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    plugin.content = content.SerializeToString()


def curves(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of every curve that a line of metrics is a point of.

    Beside its own numbers: the error in percent, which the paper draws, and the upper edges of the
    stack.
    """
    event = metrics["event"]
    for name, value in metrics.items():
        if name not in _NOT_DRAWN and value is not None:
            yield f"{event}/{name}", value
    yield f"{event}/error_percent", 100 * (1.0 - metrics["top1"])
    if f"share_{STACKED[0]}" in metrics:
        shares = [0.0] + [metrics[f"share_{name}"] for name in STACKED]
        for number, edge in enumerate(accumulate(shares), start=-1):
            yield stacked_tag(number), edge


def _val_pictures(folder: Path, position: int) -> Iterator[Any]:
    """The events with a validation's pictures at `position`, which metrics.jsonl does not have."""
    for event in events_at(folder, position):
        if any(v.tag.startswith("val/") and v.HasField("image") for v in event.summary.value):
            yield event


_PREFIX = "events.out.tfevents"
_RUN = "run "


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files in `folder`, in the order in which it reads them."""
    return sorted(folder.glob(f"{_PREFIX}.*"))


def run_of(path: Path) -> str | None:
    """The id of the run that an event file is of; None if it has none, as files of others and of
    earlier versions do."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for record in islice(RawEventFileLoader(str(path)).Load(), 2):
        said = str(Event.FromString(record).session_log.msg)
        if said.startswith(_RUN):
            return said.removeprefix(_RUN)
    return None


class EventFile:
    """A new event file of the run `run_id`, from which on nothing that `folder` has at `purge_step`
    or later counts."""

    def __init__(self, folder: Path, purge_step: int, room: Room, run_id: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, which begin with a second: this
        # one's must come after those of all earlier starts, whatever the clock did since.
        seconds = [int(time.time())] + [_second(path) + 1 for path in event_files(folder)]
        name = f"{_PREFIX}.{max(seconds):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = PatientFile(folder / name, room)
        now = time.time()
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START, msg=_RUN + run_id)
        self._write(Event(wall_time=now, step=purge_step, session_log=start))

    def add(self, summary: Any, position: int, wall_time: float | None = None) -> None:
        """Adds a `Summary` at `position`, of now unless `wall_time` (seconds) is given."""
        from tensorboard.compat.proto.event_pb2 import Event

        now = time.time() if wall_time is None else wall_time
        self._write(Event(wall_time=now, step=position, summary=summary))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.write(record.getvalue())


def _second(path: Path) -> int:
    second = path.name[len(_PREFIX) + 1 :].partition(".")[0]
    return int(second) if second.isdigit() else 0


def events_at(folder: Path, position: int) -> Iterator[Any]:
    """The events at `position` in the newest file that has some, as they were written."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for path in reversed(event_files(folder)):
        events = (Event.FromString(record) for record in RawEventFileLoader(str(path)).Load())
        found = [event for event in events if event.step == position and event.summary.value]
        if found:
            yield from found
            return
