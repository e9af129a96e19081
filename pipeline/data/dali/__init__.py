"""Executes plans with DALI: the graph (graph) and the batches it gives (loader).

The only package that imports DALI.
"""

from pipeline.data.dali.graph import (
    DecoderMemory,
    DecodeSettings,
    gpu_count,
    graph_inputs,
    make_pipeline,
)
from pipeline.data.dali.loader import Batch, Loader, available_cores, read_patiently

__all__ = [
    "Batch", "DecodeSettings", "DecoderMemory", "Loader", "available_cores",
    "gpu_count", "graph_inputs", "make_pipeline", "read_patiently",
]  # fmt: skip
