"""The four pages of TensorBoard's custom scalars: learning, speed, health, data."""

from __future__ import annotations

import re
from typing import Any

STACKED = (
    "data_wait", "forward", "backward", "communication", "agreement", "optimizer", "checkpoint",
    "validation", "rest",
)  # fmt: skip
"""Where the time of a window goes, from the bottom of the stack to its top; metrics.jsonl has the
share of each as `share_<name>`."""

_GPU_MEMORY = ("train/gpu_memory_torch_bytes", "train/gpu_memory_other_bytes")


def stacked_tag(number: int) -> str:
    """The tag of the upper edge of the stack's part `number`; that of -1 is zero throughout."""
    name = STACKED[number] if number >= 0 else "nothing"
    return f"stack/{number + 1}_{name}"


def layout(gpu: bool) -> Any:
    """The pages as a `Layout`, with memory for a `gpu`. A chart is of those of its tags that a run
    has."""
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    pages = {
        "learning": [
            _lines("error, as the paper draws it", "train/error", "val/error"),
            _lines("loss", "train/loss", "val/loss"),
            _lines("learning rate", "train/lr"),
            _lines("top-5", "train/top5", "val/top5"),
        ],
        "speed": [
            _lines("images per second, all ranks", "train/images_per_sec"),
            _lines(
                "images per second of a rank by itself: mean and slowest",
                "train/rank_images_per_sec", "train/slowest_images_per_sec",
            ),
            _stack("where the time goes, stacked up to 1"),
            _lines("which rank is slowest (look at it without smoothing)", "train/slowest_rank"),
            _lines(
                "share of the step that waits", "train/data_wait_share",
                "train/communication_share",
            ),
            *([_lines("GPU memory, bytes", *_GPU_MEMORY)] if gpu else []),
        ],
        "health": [
            _matching("gradient norm by stage", r"train/gradient_norm(_.*)?"),
            _matching("weight norm by stage", r"train/weight_norm_.*"),
            _lines("loss scale", "train/loss_scale"),
            _lines("steps skipped, images excluded", "train/skipped_steps", "train/excluded",
                   "val/excluded"),
            _lines("spread of BN statistics over ranks", "val/bn_spread"),
            _lines("longest time without a heartbeat, seconds", "train/heartbeat_sec"),
        ],
        "data": [
            _lines("top-1 of the best, the median and the worst class",
                   "val/class_top1_best", "val/class_top1_median", "val/class_top1_worst"),
            _lines("seconds waited for data", "train/data_wait_sec"),
            _lines("images excluded", "train/excluded", "val/excluded"),
        ],
    }  # fmt: skip
    return pb.Layout(
        category=[pb.Category(title=title, chart=charts) for title, charts in pages.items()]
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


def _lines(title: str, *tags: str) -> Any:
    return _matching(title, *(f"^{re.escape(tag)}$" for tag in tags))


def _matching(title: str, *patterns: str) -> Any:
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    return pb.Chart(title=title, multiline=pb.MultilineChartContent(tag=patterns))


def _stack(title: str) -> Any:
    """A band for each part, between the upper edge of the one below it and its own."""
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    bands = [
        pb.MarginChartContent.Series(
            value=stacked_tag(number), lower=stacked_tag(number - 1), upper=stacked_tag(number)
        )
        for number in range(len(STACKED))
    ]
    return pb.Chart(title=title, margin=pb.MarginChartContent(series=bands))
