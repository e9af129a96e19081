"""Executes plans with DALI: its graphs (graph) and the batches they produce (loader).

The only package that imports DALI.
"""

from __future__ import annotations

from pipeline.data.dali.graph import graph_inputs, make_pipeline
from pipeline.data.dali.loader import Batch, Loader, read_patiently
from pipeline.data.dali.settings import DecoderMemory, DecodeSettings, gpu_count

__all__ = [
    "Batch", "DecodeSettings", "DecoderMemory", "Loader",
    "gpu_count", "graph_inputs", "make_pipeline", "read_patiently",
]  # fmt: skip
