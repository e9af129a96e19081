"""What a GPU is told before it trains, and what the log says of it."""

from __future__ import annotations

import torch

from pipeline.config import Config


def choose_algorithms(config: Config, device: torch.device) -> None:
    """Lets cuDNN try its algorithms for each shape and keep the fastest, if `run.autotune` says so.

    For the whole process, and on a GPU only. Another algorithm sums in another order: bits agree
    between two runs only without.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = config.run.autotune


def described(config: Config) -> str:
    """How a GPU computes, for the log."""
    tf32 = "on" if config.optim.amp == "tf32" else "off"
    tuned = "the fastest of each shape" if config.run.autotune else "its first choice"
    graphs = ", each stage a CUDA graph" if config.model.graphs else ""
    return f"TF32 {tf32}, cuDNN's algorithms: {tuned}{graphs}"
