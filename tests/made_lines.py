"""Lines of metrics as `pipeline.train.monitor` gets them, made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from one_process import config_of

from pipeline.train.folder import RunFolder
from pipeline.train.monitor.monitor import RunMonitor


def line(event: str, position: int, **more: float | None) -> dict[str, Any]:
    """A line of a run with 10 images a step; `more` replaces or adds fields."""
    shared = {"step": position // 10, "position": position, "epoch": 0, "loss": 1.0, "top1": 0.5}
    if event == "train":
        shared |= {"lr": 0.1, "images_per_sec": 1.0, "data_wait_share": 0.1, "images": 30}
    return {**shared, "top5": 0.6, "images": 30, **more}


def made_run(below: Path, *options: str, positions=(10, 20), start: int = 0, val: int = 0) -> Path:
    """A run of lines that are made up; its folder."""
    config = config_of(below, below, *options)
    config.run.path.mkdir(exist_ok=True)
    monitor = RunMonitor(RunFolder(config.run.path), config, start, 1 if start else 0, 100)
    val = val or positions[-1]
    for position in sorted({*positions, val}):
        if position in positions:
            monitor.train(line("train", position, loss=1 / position))
        if position == val:
            monitor.val(line("val", position))
    monitor.close()
    return config.run.path
