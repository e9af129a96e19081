"""The graph that DALI executes for images that are pixels already, as those of CIFAR-10.

pixels -> subtract the mean -> cut, zeros beyond the image -> mirror -> divide by the deviation ->
(B, H, W, 3), on the CPU. The mean comes before the zeros, so that what is beyond the image counts
as average (section 4.2 of the paper).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types

from pipeline.data.dali.settings import DecodeSettings, new_pipeline, output_arguments
from pipeline.data.stream import Selection


def graph_inputs(selection: Selection, images: list[np.ndarray]) -> tuple[Any, ...]:
    """As `graph.graph_inputs`, of `images` (H, W, 3) uint8 each.

    Boxes are whole pixels and may lie outside the image.
    """
    plan = selection.plan
    assert not plan.offsets.any(), "this graph adds no colour offset"
    assert (plan.boxes[:, 2:] == plan.shape).all(), "this graph does not resize"
    return (
        np.stack(images),
        plan.boxes[:, :2].astype(np.int32),
        plan.boxes[:, 2:].astype(np.int32),
        plan.flips.astype(np.int32),
        np.ascontiguousarray(selection.labels),
    )


def make_pipeline(source: Any, batch_size: int, settings: DecodeSettings) -> Pipeline:
    """As `graph.make_pipeline`: images (B, H, W, 3), float32 or float16, and labels (B,) int64."""
    assert settings.output != "uint8", "the zeros of the padding are zeros after the mean"
    pipe = new_pipeline(batch_size, settings)
    with pipe:
        images, start, extent, flips, labels = fn.external_source(
            source=source, num_outputs=5, batch=True, layout=["HWC", "", "", "", ""]
        )
        images = images - types.Constant(settings.normalisation.subtracted, device="cpu")
        images = fn.slice(
            images,
            start,
            extent,
            axis_names="HW",
            normalized_anchor=False,
            normalized_shape=False,
            out_of_bounds_policy="pad",
            fill_values=0.0,
        )
        images = fn.crop_mirror_normalize(images, mirror=flips, **output_arguments(settings))
        pipe.set_outputs(images, labels)
    return pipe
