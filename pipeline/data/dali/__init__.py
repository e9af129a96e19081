"""Executes plans with DALI: graphs (graph), their inputs (source), the way of their outputs to the
rank's device (arrival), and the batches of all this (loader).

The only package that imports DALI.
"""

from __future__ import annotations

from pipeline.data.dali.graph import as_lists, graph_inputs, make_pipeline
from pipeline.data.dali.loader import Batch, Loader
from pipeline.data.dali.settings import DecoderMemory, DecodeSettings, gpu_count
from pipeline.data.dali.source import read_patiently

__all__ = [
    "Batch", "DecodeSettings", "DecoderMemory", "Loader",
    "as_lists", "gpu_count", "graph_inputs", "make_pipeline", "read_patiently",
]  # fmt: skip
