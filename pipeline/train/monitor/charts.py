"""TensorBoard's pages of charts, and the curves that they need besides the lines' own numbers.

What TensorBoard (2.21) does with the pages of several runs decides their form. It shows each chart
once that two runs have alike, and every run's curves in all of them: so a chart draws one line of a
run, where it can, and is there where the run has something to show. And a chart of bands says
"Missing Tags" of a run without its tags, except where that are those of one band alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.train.monitor.observer import numbers

_MARKS = ("\N{BLACK MEDIUM SQUARE}", "\N{BLACK DIAMOND}")
"""TensorBoard's markers for the points of a chart's first line and its second."""
_ABOUT = {
    "learning": "by images seen (STEP); mixed training images count by the larger label",
    "speed": "what limits it, by images seen (STEP)",
    "validation": "more of it, by images seen (STEP); mistakes are pictures under IMAGES",
    "health": "what should change slowly or not at all, by images seen (STEP)",
    "stages": "norms of gradients and weights by stage, by images seen (STEP)",
}
_COMPUTING = ("forward", "backward", "optimizer")
_BESIDES = ("validation", "checkpoint")


@dataclass(frozen=True)
class Shown:
    """What a run has to show."""

    ranks: int = 1
    sums: str | None = None
    """In which order sums of ranks are taken (`run.sums`), if that is known."""
    top5: bool = True
    ema: bool = False
    scales_loss: bool = False
    """Whether its loss is scaled, and a step may be skipped: fp16."""
    excludes: bool = False
    """Whether it may leave images out."""
    fields: tuple[str, ...] = ()
    """The names in its lines of training."""

    @classmethod
    def by(cls, config: Config, top5: bool = True) -> Shown:
        """What is known by a configuration."""
        data = config.data
        return cls(
            top5=top5,
            ema=config.optim.ema_decay is not None,
            scales_loss=config.optim.amp == "fp16",
            excludes=data.bad_images == "exclude" or data.exclude is not None,
        )


def curves(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of every curve that has a point in a line of metrics.

    Besides its own numbers: errors in percent, which the paper draws; and what sums up the time, in
    tags that come after all others.
    """
    event = line["event"]
    yield from numbers(line)
    for prefix in ("", "ema_"):
        if f"{prefix}top1" in line:
            yield f"{event}/{prefix}error_percent", 100 * (1.0 - line[f"{prefix}top1"])
    for name, parts in (("computing", _COMPUTING), ("validating_and_saving", _BESIDES)):
        shares = [line[f"share_{part}"] for part in parts if f"share_{part}" in line]
        if shares:
            yield f"where_time_goes/{name}", sum(shares)
    mean, slowest = line.get("rank_images_per_sec"), line.get("slowest_images_per_sec")
    if mean and slowest is not None:
        yield "where_time_goes/slowest_rank_percent_behind", 100 * (1.0 - slowest / mean)


def layout(has: Shown) -> Any:
    """The pages of a run as a `Layout`. They are written as they are to be read, smoothed charts
    first; the first page, four charts, fits a screen of 1280 by 800 pixels."""
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    pages = {
        "learning": [
            _lines("error in validation, %", val="val/error_percent"),
            _lines("error in training, %", train="train/error_percent"),
            _lines("loss", train="train/loss", val="val/loss"),
            _lines("learning rate", lr="train/lr"),
        ],
        "speed": _speed(has),
        "validation": _validation(has),
        "health": _health(has),
        "stages": [
            _lines(f"{kind} norm, {name.removeprefix(f'{kind}_norm_')}", norm=f"train/{name}")
            for kind in ("gradient", "weight")
            for name in has.fields
            if name.startswith(f"{kind}_norm_")
        ],
    }
    return pb.Layout(
        category=[
            pb.Category(title=f"{page}: {_ABOUT[page]}", chart=_as_shown(charts))
            for page, charts in pages.items()
            if charts
        ]
    )


def _speed(has: Shown) -> list[Any]:
    charts = [
        _smoothed("images per second, all ranks", "train/images_per_sec"),
        _lines("share of the step that waits for data", share="train/data_wait_share"),
        _lines("share of the time that computes", share="where_time_goes/computing"),
        _lines(
            "share of the time that validates and saves",
            share="where_time_goes/validating_and_saving",
        ),
    ]
    if has.ranks > 1:
        share, behind = "train/communication_share", "where_time_goes/slowest_rank_percent_behind"
        charts.append(_lines("share of the step that waits for gradients", share=share))
        charts.append(_lines("slowest rank behind the mean, %", behind=behind))
    if "image_size" in has.fields:
        charts.append(_lines("side of the training crop, pixels", side="train/image_size"))
    if "gpu_memory_torch_bytes" in has.fields:
        charts.append(_smoothed("GPU memory by owner, bytes", "train/gpu_memory_.*_bytes"))
    return charts


def _validation(has: Shown) -> list[Any]:
    classes = "top-1 of the best, the median and the worst class"
    charts = [
        _smoothed(classes, "val/class_top1_(best|median|worst)"),
        _lines("top-1 as the mean over classes", mean="val/balanced_top1"),
    ]
    if has.top5:
        charts.append(_lines("top-5", top5="val/top5"))
    if has.ema:
        error, loss = "val/ema_error_percent", "val/ema_loss"
        charts.append(_lines("error of the average of the weights, %", error=error))
        charts.append(_lines("loss of the average of the weights", loss=loss))
    return charts


def _health(has: Shown) -> list[Any]:
    charts = [
        _lines("gradient norm", norm="train/gradient_norm"),
        _lines("longest time without a heartbeat, seconds", beat="train/heartbeat_sec"),
    ]
    if has.ranks > 1 and has.sums != "fixed":  # with which all ranks have the same statistics
        charts.append(_lines("spread of BN statistics over ranks", spread="val/bn_spread"))
    if has.scales_loss:
        charts.append(_lines("loss scale", scale="train/loss_scale"))
        charts.append(_lines("steps skipped", steps="train/skipped_steps"))
    if has.excludes:
        charts.append(_lines("images excluded", train="train/excluded", val="val/excluded"))
    return charts


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


def _lines(title: str, **tags: str) -> Any:
    """A line, or two with their names and marks in the title; not smoothed.

    They are bands without width: a chart of bands assigns markers in the order given here. Of two,
    every run has the first, so that TensorBoard does not miss both.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    series = [
        pb.MarginChartContent.Series(value=tag, lower=tag, upper=tag) for tag in tags.values()
    ]
    words = " ".join(f"{mark} {name}" for mark, name in zip(_MARKS, tags, strict=False))
    return pb.Chart(
        title=f"{title}: {words}" if len(tags) > 1 else title,
        margin=pb.MarginChartContent(series=series),
    )
