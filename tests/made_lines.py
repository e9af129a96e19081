"""Lines of metrics as `pipeline.train.monitor` gets them, made up."""

from __future__ import annotations

from typing import Any


def line(event: str, position: int, **more: float | None) -> dict[str, Any]:
    """A line of a run with 10 images a step; `more` replaces or adds fields."""
    shared = {"step": position // 10, "position": position, "epoch": 0, "loss": 1.0, "top1": 0.5}
    if event == "train":
        shared |= {"lr": 0.1, "images_per_sec": 1.0, "data_wait_share": 0.1, "images": 30}
    return {**shared, "top5": 0.6, "images": 30, **more}
