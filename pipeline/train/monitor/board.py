"""TensorBoard's files of a run: curves and pictures by images seen, and the pages that show
them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import accumulate, cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, settings
from pipeline.system.files import PatientFile, Room
from pipeline.system.words import printable
from pipeline.train.monitor.observer import DRAWN, Observer, numbers

STACKED = (
    "data_wait", "forward", "backward", "communication", "agreement", "optimizer", "checkpoint",
    "validation", "rest",
)  # fmt: skip
"""Parts of the time of a window, from the bottom of the stack to its top; metrics.jsonl has the
share of each as `share_<name>`."""

_GPU_MEMORY = {name: f"train/gpu_memory_{name}_bytes" for name in ("torch", "dali", "other")}
_SHARES = ("data_wait", "forward", "backward", "communication", "optimizer")
_MARKS = (
    "\N{BLACK MEDIUM SQUARE}", "\N{BLACK DIAMOND}", "\N{BLACK UP-POINTING TRIANGLE}",
    "\N{BLACK STAR}", "\N{HEAVY GREEK CROSS}",
)  # fmt: skip
"""TensorBoard's markers for the points of a chart's first line, its second, and so on."""
_ABOUT = {
    "learning": "errors and loss by images seen (STEP); mixed training images count by the larger "
    "label",
    "speed": "what the time goes into, by images seen (STEP)",
    "health": "what should change slowly or not at all, by images seen (STEP)",
    "data": "by images seen (STEP); the pictures of images and mistakes are under IMAGES",
}

_LABELS = {None: "null", True: "true", False: "false"}
_COMPARED_METRICS = ("val/best_top1", "val/top1", "val/loss", "train/images_per_sec")


class Board(Observer):
    """The event files of a run that resumes at `position`, with the lines `kept` up to there.

    TensorBoard itself discards what an earlier start drew beyond that; where no file of an earlier
    start is left, all of `kept` is drawn again. `top5` and `ema` say whether the run counts top-5,
    and has an average of its weights.
    """

    wants_pictures = True

    def __init__(
        self, folder: Path, position: int, kept: Sequence[Mapping[str, Any]], room: Room,
        top5: bool = True, ema: bool = False,
    ) -> None:  # fmt: skip
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._top5, self._ema = top5, ema
        lost = not event_files(folder)
        # The session's start discards `position` itself too, which must stay here.
        again = [metrics for metrics in kept if lost or metrics["position"] >= position]
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
        more = ["val/top5"] if self._top5 else []
        more += ["val/best_ema_top1", "val/ema_top1"] if self._ema else []
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

        if line["event"] not in DRAWN:
            return
        if self._pages_due and line["event"] == "train":
            self._pages_due = False
            gpu, grows = "gpu_memory_torch_bytes" in line, "image_size" in line
            pages = layout_summary(layout(gpu, self._top5, self._ema, grows))
            self._add(step=0, summary=pages)
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


def curves(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of every curve that has a point in a line of metrics.

    Besides its own numbers: errors in percent, which the paper draws, and the upper edges of the
    stack.
    """
    event = metrics["event"]
    yield from numbers(metrics)
    for prefix in ("", "ema_"):
        if f"{prefix}top1" in metrics:
            yield f"{event}/{prefix}error_percent", 100 * (1.0 - metrics[f"{prefix}top1"])
    if f"share_{STACKED[0]}" in metrics:
        shares = [0.0] + [metrics[f"share_{name}"] for name in STACKED]
        for number, edge in enumerate(accumulate(shares), start=-1):
            yield stacked_tag(number), edge


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


def _val_pictures(folder: Path, position: int) -> Iterator[Any]:
    """The events with a validation's pictures at `position`, which metrics.jsonl does not have, as
    the newest file that has events there holds them."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for path in reversed(event_files(folder)):
        # TensorBoard opens paths of UTF-8 only (2.21), which this one is wherever the run lies.
        with open(path, "rb") as file:
            loader = RawEventFileLoader(f"/proc/self/fd/{file.fileno()}")
            events = (Event.FromString(record) for record in loader.Load())
            found = [event for event in events if event.step == position and event.summary.value]
        for event in found:
            if any(v.tag.startswith("val/") and v.HasField("image") for v in event.summary.value):
                yield event
        if found:
            return


def stacked_tag(number: int) -> str:
    """The tag of the upper edge of the stack's part `number`; that of -1 is zero throughout.

    TensorBoard sorts tags by name, and edges are no charts of their own: they come last.
    """
    name = STACKED[number] if number >= 0 else "nothing"
    return f"where_time_goes/{number + 1}_{name}"


def layout(gpu: bool, top5: bool = True, ema: bool = False, grows: bool = False) -> Any:
    """The pages as a `Layout`, with memory for a `gpu`, and `top5`, `ema` and crops that grow for
    a run that has them. A chart shows those of its tags that a run has.

    All lines of a run have its colour, and the legend is folded: titles say which line is which.
    Pages are written as they are to be read: smoothed charts first.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    def of_average(**tags: str) -> dict[str, str]:
        return tags if ema else {}

    pages = {
        "learning": [
            _marked("error in %, as the paper draws it", train="train/error_percent",
                    val="val/error_percent", **of_average(val_EMA="val/ema_error_percent")),
            _marked("loss", train="train/loss", val="val/loss",
                    **of_average(val_EMA="val/ema_loss")),
            _marked("learning rate", lr="train/lr"),
            _marked("top-1 in validation, share", of_images="val/top1",
                    mean_of_classes="val/balanced_top1", **of_average(EMA="val/ema_top1")),
            *([_marked("top-5, share of the images", train="train/top5", val="val/top5",
                       **of_average(val_EMA="val/ema_top5"))] if top5 else []),
        ],
        "speed": [
            _smoothed("images per second, all ranks", "train/images_per_sec"),
            _stack("where the time goes, from below"),
            _marked("share of the time", **{name: f"train/share_{name}" for name in _SHARES}),
            _marked("share of the step that waits", for_data="train/data_wait_share",
                    for_gradients="train/communication_share"),
            _marked("images per second of a rank by itself", mean="train/rank_images_per_sec",
                    slowest="train/slowest_images_per_sec"),
            _marked("which rank is slowest", rank="train/slowest_rank"),
            *([_marked("side of the training crop, pixels", side="train/image_size")]
              if grows else []),
            *([_marked("GPU memory, bytes", **_GPU_MEMORY)] if gpu else []),
        ],
        "health": [
            _smoothed("gradient norm, of all and by stage", r"train/gradient_norm(_.*)?"),
            _smoothed("weight norm by stage", r"train/weight_norm_.*"),
            _smoothed("spread of BN statistics over ranks", "val/bn_spread"),
            _smoothed("longest time without a heartbeat, seconds", "train/heartbeat_sec"),
            _marked("loss scale", scale="train/loss_scale"),
            _marked("steps skipped", steps="train/skipped_steps"),
            _marked("images excluded", train="train/excluded", val="val/excluded"),
        ],
        "data": [
            _marked("top-1 of a class, share of its images", best="val/class_top1_best",
                    median="val/class_top1_median", worst="val/class_top1_worst"),
            _marked("seconds waited for data since the last line", wait="train/data_wait_sec"),
        ],
    }  # fmt: skip
    return pb.Layout(
        category=[
            pb.Category(title=f"{page}: {_ABOUT[page]}", chart=_as_shown(charts))
            for page, charts in pages.items()
        ]
    )


def layout_summary(pages: Any) -> Any:
    """A `layout` as TensorBoard looks for it. Its own builder needs TensorFlow (2.21)."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.custom_scalar import metadata

    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    content = TensorProto(
        dtype="DT_STRING",
        string_val=[pages.SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        tensor=content,
        metadata=SummaryMetadata(plugin_data=plugin),
    )
    return Summary(value=[value])


def _as_shown(charts: Sequence[Any]) -> list[Any]:
    """Charts of bands, last to first: TensorBoard shows them reversed, after all others (2.21)."""
    bands = [chart for chart in charts if chart.HasField("margin")]
    return [*(chart for chart in charts if chart not in bands), *reversed(bands)]


def _smoothed(title: str, pattern: str) -> Any:
    """A line for each tag that the regular expression matches, smoothed as set. Which line gets
    which marker changes with every start of TensorBoard."""
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    return pb.Chart(title=title, multiline=pb.MultilineChartContent(tag=[f"^{pattern}$"]))


def _marked(title: str, **tags: str) -> Any:
    """Lines, each named in the title; not smoothed.

    They are bands without width: a chart of bands assigns markers in the order given here.
    """
    return _bands(title, {name: (tag, tag) for name, tag in tags.items()})


def _stack(title: str) -> Any:
    """A band for each part, between the upper edge of the one below it and its own."""
    edges = [stacked_tag(number) for number in range(-1, len(STACKED))]
    return _bands(title, dict(zip(STACKED, pairwise(edges), strict=True)))


def _bands(title: str, bands: Mapping[str, tuple[str, str]]) -> Any:
    """Bands by their names, each from its lower to its upper tag, which is the line too."""
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    series = [
        pb.MarginChartContent.Series(value=upper, lower=lower, upper=upper)
        for lower, upper in bands.values()
    ]
    named = zip(cycle(_MARKS), bands, strict=False)
    words = " ".join(f"{mark} {name.replace('_', ' ')}" for mark, name in named)
    return pb.Chart(
        title=f"{title}: {words}" if len(bands) > 1 else title,
        margin=pb.MarginChartContent(series=series),
    )
