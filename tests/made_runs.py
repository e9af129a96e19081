"""Run folders with made metrics, in the form of `pipeline.train.monitor`, for their readers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config
from pipeline.train.folder import Holder

CIFAR = {
    "data.dataset": "cifar-10", "data.root": "data/cifar-10", "data.train_crop": "padded",
    "data.global_batch_size": 128, "model.family": "cifar", "model.depth": 20,
    "data.image_size": 32, "data.val_resize": 32,
}  # fmt: skip
TIME = 1_790_000_000.0  # 2026-09-21

Settings = dict[str, Any]


class RunMaker:
    """Writes runs below a folder."""

    def __init__(self, below: Path) -> None:
        self.below = below

    def __call__(
        self, name: str, settings: Settings, last: float = 10.0, finished: bool = True,
        **size: int,
    ) -> Path:  # fmt: skip
        """A run whose training error falls from 90% to `last`, validation error 1 point above it.

        `size`: steps, a validation every `epoch` steps, `train` and `val` images.
        """
        folder = self.below / name
        folder.mkdir(parents=True)
        tree = yaml.safe_load(Config().to_yaml())
        for key, value in settings.items():
            part, _, rest = key.partition(".")
            tree[part][rest] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        sizes = {"steps": 4000, "epoch": 391, "train": 50_000, "val": 10_000, **size}
        images = {"train_images": sizes.pop("train"), "val_images": sizes["val"]}
        batch = tree["data"]["global_batch_size"]
        lines = [start(**images), *events(last, finished, batch, **sizes)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder


def start(**facts: Any) -> dict[str, Any]:
    """The line of a start that says no more than the versions and `facts`."""
    versions = {"torch": "2.13.0", "commit": "abc1234"}
    return {
        "event": "start", "step": 0, "position": 0, "time": TIME, "versions": versions, **facts
    }  # fmt: skip


def event(kind: str, step: int, **more: float) -> dict[str, Any]:
    """A line of one kind with as little as a run ever writes."""
    least = {"top1": 0.5, "top5": 0.8, "images": 10, "time": TIME + step}
    return {"event": kind, "step": step, "position": 128 * step, **least} | more


def held_by(host: str, process: int = 1, slurm_job: str | None = None) -> str:
    """What the lock of a run on `host` says."""
    return Holder(process, host, slurm_job, "2026-11-21 10:00:22").as_json


def events(last: float, finished: bool, batch: int, steps: int, epoch: int, val: int) -> Any:
    """The lines of a run, a line of training every 50 steps."""
    for step in range(1, steps + 1):
        error = last + (90 - last) * math.exp(-12 * step / steps)
        line = {
            "step": step, "position": step * batch, "epoch": (step - 1) // epoch,
            "loss": error / 20, "top1": 1 - error / 100, "top5": 1 - error / 200,
            "time": TIME + step,
        }  # fmt: skip
        if step % 50 == 0:
            lr = 0.1 if step < steps / 2 else 0.01 if step < 3 * steps / 4 else 0.001
            yield {"event": "train", **line, "lr": lr, "gradient_norm": 1 + error / 50}
        if step % epoch == 0 or step == steps:
            yield {"event": "val", **line, "top1": line["top1"] - 0.01, "images": val}
    if finished:
        yield {"event": "done", **line, "best_top1": line["top1"] - 0.01}


def write_evaluation(run: Path, name: str, **changed: Any) -> None:
    """A result of pipeline.evaluate with ten crops, but for what is `changed`; `data`
    are settings other than the run's."""
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]
    names = ("root", "dataset", "image_size", "val_resize")
    result = {
        "protocol": "10-crop", "mirror": False, "scales": [], "ensemble": ["best.pt"],
        "bn_images": None, "test_images": False, "changed": {}, "other_data": False, "step": 3910,
        "images": 50_000, "top1": 0.75, "top5": 0.92, "date": "2026-11-20T10:00:00+00:00",
        "config": {"data": {name: stored[name] for name in names} | changed.pop("data", {})},
    }  # fmt: skip
    (run / f"evaluate-{name}.json").write_text(json.dumps(result | changed))
