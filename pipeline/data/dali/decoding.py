"""The part of the graph that decodes, by itself: what a benchmark holds the whole graph against."""

from __future__ import annotations

from typing import Any

from nvidia.dali import Pipeline, fn

from pipeline.data.dali.graph import decoded
from pipeline.data.dali.settings import DecodeSettings, new_pipeline


def make_decoding_pipeline(source: Any, batch_size: int, settings: DecodeSettings) -> Pipeline:
    """As `graph.make_pipeline`, up to its first operator; not yet built.

    `source()` gives the first three of `graph_inputs` for each batch. Gives each image's box,
    (h, w, 3) uint8.
    """
    pipe = new_pipeline(batch_size, settings)
    with pipe:
        encoded, low, extent = fn.external_source(source=source, num_outputs=3, batch=True)
        pipe.set_outputs(decoded(encoded, low, extent, settings))
    return pipe
