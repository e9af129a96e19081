"""The four pages of TensorBoard's custom scalars: learning, speed, health, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import Any

STACKED = (
    "data_wait", "forward", "backward", "communication", "agreement", "optimizer", "checkpoint",
    "validation", "rest",
)  # fmt: skip
"""Where the time of a window goes, from the bottom of the stack to its top; metrics.jsonl has the
share of each as `share_<name>`."""

_GPU_MEMORY = {name: f"train/gpu_memory_{name}_bytes" for name in ("torch", "dali", "other")}
_SHARES = ("data_wait", "forward", "backward", "communication", "optimizer")
_MARKS = (
    "\N{BLACK MEDIUM SQUARE}", "\N{BLACK DIAMOND}", "\N{BLACK UP-POINTING TRIANGLE}",
    "\N{BLACK STAR}", "\N{HEAVY GREEK CROSS}",
)  # fmt: skip
"""What TensorBoard marks the points of a chart's first line with, of its second, and so on."""
_ABOUT = {
    "learning": "errors and loss by images seen (STEP)",
    "speed": "what the time goes into, by images seen (STEP)",
    "health": "what should change slowly or not at all, by images seen (STEP)",
    "data": "by images seen (STEP); the pictures of images and mistakes are under IMAGES",
}


def stacked_tag(number: int) -> str:
    """The tag of the upper edge of the stack's part `number`; that of -1 is zero throughout.

    TensorBoard shows tags by name, and edges are no charts of their own: they come last.
    """
    name = STACKED[number] if number >= 0 else "nothing"
    return f"where_time_goes/{number + 1}_{name}"


def layout(gpu: bool) -> Any:
    """The pages as a `Layout`, with memory for a `gpu`. A chart is of those of its tags that a run
    has.

    All lines of a run have its colour, and the legend is folded: titles say which line is which.
    Pages are written as they are to be read: smoothed charts first.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    pages = {
        "learning": [
            _marked("error in %, as the paper draws it", train="train/error_percent",
                    val="val/error_percent"),
            _marked("loss", train="train/loss", val="val/loss"),
            _marked("learning rate", lr="train/lr"),
            _marked("top-5, share of the images", train="train/top5", val="val/top5"),
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


def layout_summary(gpu: bool) -> Any:
    """The layout as TensorBoard looks for it. Its own maker of it needs TensorFlow (2.21)."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.custom_scalar import metadata

    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    content = TensorProto(
        dtype="DT_STRING",
        string_val=[layout(gpu).SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        tensor=content,
        metadata=SummaryMetadata(plugin_data=plugin),
    )
    return Summary(value=[value])


def _as_shown(charts: Sequence[Any]) -> list[Any]:
    """Charts of bands last to first: so TensorBoard shows them, after all others (2.21)."""
    bands = [chart for chart in charts if chart.HasField("margin")]
    return [*(chart for chart in charts if chart not in bands), *reversed(bands)]


def _smoothed(title: str, pattern: str) -> Any:
    """A line for each tag that the regular expression fits, as smooth as is asked for. Which of
    them gets which mark changes with every start of TensorBoard."""
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    return pb.Chart(title=title, multiline=pb.MultilineChartContent(tag=[f"^{pattern}$"]))


def _marked(title: str, **tags: str) -> Any:
    """Lines, each by its name in the title; not smoothed.

    They are bands without width: in a chart of bands marks go by the order given here.
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
