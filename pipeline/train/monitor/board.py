"""TensorBoard's files of a run: curves and pictures by images seen, and the settings."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, settings
from pipeline.system.files import PatientFile, Room
from pipeline.system.words import printable
from pipeline.train.monitor.charts import Shown, curves, layout, layout_summary
from pipeline.train.monitor.observer import DRAWN, Observer

_LABELS = {None: "null", True: "true", False: "false"}
_COMPARED_METRICS = ("val/best_top1", "val/top1", "val/loss", "train/images_per_sec")


class Board(Observer):
    """The event files of a run that resumes at `position`, with the lines `kept` up to there.

    TensorBoard itself discards what an earlier start drew beyond that. What no earlier start drew,
    or whose file is gone, is drawn now. `has` says what the run has to show.
    """

    wants_pictures = True

    def __init__(
        self, folder: Path, position: int, kept: Sequence[Mapping[str, Any]], room: Room,
        has: Shown | None = None,
    ) -> None:  # fmt: skip
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._has = has or Shown()
        lost = not event_files(folder)
        drawn = -1 if lost else _last_position(folder)
        # The session's start discards `position` itself too, which must stay here.
        again = [line for line in kept if line["position"] > drawn or line["position"] >= position]
        validated = any(metrics["event"] == "val" for metrics in again)
        pictures = list(_val_pictures(folder, position)) if validated else []
        self.is_new = position == 0 or lost
        """Whether the run has no events yet: it is starting, perhaps from a checkpoint."""
        self._file = _new_file(folder, room)
        self._add(file_version="brain.Event:2")
        self._add(step=position, session_log=SessionLog(status=SessionLog.START))
        self._pages_due = lost or not any(metrics["event"] == "train" for metrics in kept)
        for metrics in again:
            self.see(metrics)
        for event in pictures:
            self._add(wall_time=event.wall_time, step=event.step, summary=event.summary)

    def describe(self, config: Config) -> None:
        """Writes the settings, at the start of a run."""
        from torch.utils.tensorboard.summary import hparams, text

        words = text("config", f"```yaml\n{config.to_yaml()}```")  # type: ignore[no-untyped-call]
        values = compared_settings(config)
        more = ["val/top5"] if self._has.top5 else []
        more += ["val/best_ema_top1", "val/ema_top1"] if self._has.ema else []
        compared = dict.fromkeys((*_COMPARED_METRICS, *more))
        tables = hparams(values, compared)  # type: ignore[no-untyped-call]
        # One of the two lengths is null. The table ticks its first five columns.
        asked = [n for n, said in settings().items() if said.asked and config.get(n) is not None]
        _put_first(tables[0], ("model.network", *asked))
        for summary in (words, *tables):
            self._add(step=0, summary=summary)

    def see(self, line: Mapping[str, Any]) -> None:
        """Writes a line of metrics.jsonl as one event: its numbers, and what else charts need."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if line["event"] == "start":
            self._has = replace(self._has, ranks=line.get("ranks", 1), sums=line.get("sums"))
        if line["event"] not in DRAWN:
            return
        if self._pages_due and line["event"] == "train":
            self._pages_due = False
            pages = layout(replace(self._has, fields=tuple(line)))
            self._add(step=0, summary=layout_summary(pages))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in curves(line)]
        summary = Summary(value=values)
        self._add(wall_time=line["time"], step=line["position"], summary=summary)

    def picture(self, tag: str, pixels: np.ndarray, position: int) -> None:
        """Writes an image (H, W, 3) uint8."""
        from torch.utils.tensorboard.summary import image

        summary = image(tag, pixels, dataformats="HWC")  # type: ignore[no-untyped-call]
        self._add(step=position, summary=summary)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        """Writes an event of these fields, timed now unless they have a `wall_time` in seconds."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = BytesIO()
        event = Event(**{"wall_time": time.time(), **fields})
        RecordWriter(record).write(event.SerializeToString())
        self._file.write(record.getvalue())


def compared_settings(config: Config) -> dict[str, int | float | str]:
    """The settings by which the table of hyperparameters compares runs; the text `config` has all.

    Settings without influence on a result are left out. A number stays one, all else is a label:
    TensorBoard shows true as 1.0000 (2.21).
    """
    from pipeline.model.network import network_name

    found: dict[str, int | float | str] = {"model.network": network_name(config.model)}
    for name, said in settings().items():
        if not (said.in_table or said.asked or said.of_network):
            continue
        value = config.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        found[name] = value if is_number else _LABELS.get(value, printable(str(value)))
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


_PREFIX = "events.out.tfevents"


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files in `folder`, in the order in which it reads them."""
    return sorted(folder.glob(f"{_PREFIX}.*"))


def _new_file(folder: Path, room: Room) -> PatientFile:
    """A new event file, which TensorBoard reads after all others in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads files in the order of their names, which begin with a second: this
    # one's must come after those of all earlier starts, whatever the clock did since.
    seconds = [int(time.time())] + [_second(path) + 1 for path in event_files(folder)]
    name = f"{_PREFIX}.{max(seconds):010d}.{socket.gethostname()}.{os.getpid()}"
    return PatientFile(folder / name, room)


def _second(path: Path) -> int:
    second = path.name[len(_PREFIX) + 1 :].partition(".")[0]
    return int(second) if second.isdigit() else 0


def _last_position(folder: Path) -> int:
    """Up to where curves are drawn: of the newest file that has a point; -1 if none has."""
    for path in reversed(event_files(folder)):
        steps = [int(event.step) for event in _events(path) if _has_point(event)]
        if steps:
            return max(steps)
    return -1


def _has_point(event: Any) -> bool:
    return any(value.HasField("simple_value") for value in event.summary.value)


def _events(path: Path) -> Iterator[Any]:
    """The events in a file of TensorBoard's."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    # TensorBoard opens paths of UTF-8 only (2.21), which this one is wherever the run lies.
    with open(path, "rb") as file:
        loader = RawEventFileLoader(f"/proc/self/fd/{file.fileno()}")
        yield from (Event.FromString(record) for record in loader.Load())


def _val_pictures(folder: Path, position: int) -> Iterator[Any]:
    """The events with a validation's pictures at `position`, which metrics.jsonl does not have, as
    the newest file that has events there holds them."""
    for path in reversed(event_files(folder)):
        events = _events(path)
        found = [event for event in events if event.step == position and event.summary.value]
        for event in found:
            if any(v.tag.startswith("val/") and v.HasField("image") for v in event.summary.value):
                yield event
        if found:
            return
