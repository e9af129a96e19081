"""What a run left behind, in forms in which two runs can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.train.checkpoint import read_verified
from pipeline.train.saving import CheckpointFolder

TIME_FIELDS = {
    "time", "images_per_sec", "data_wait_sec", "data_wait_share", "communication_share",
    "rank_images_per_sec", "slowest_images_per_sec", "slowest_rank", "heartbeat_sec",
    *(
        f"share_{name}"
        for name in (
            "data_wait", "forward", "backward", "communication", "agreement", "optimizer",
            "checkpoint", "validation", "rest",
        )
    ),
    "saved",  # of a run that could not save
}  # fmt: skip
"""What no two runs have alike in metrics.jsonl and in TensorBoard."""

STATE = (
    "step", "position", "history", "warmup", "model", "rank_statistics", "momentum", "precision",
    "window",
)  # fmt: skip
"""What a checkpoint holds of the training itself."""


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first."""
    return CheckpointFolder(run / "checkpoints", keep=1).steps()


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """The content of the newest checkpoint; fails if it is not whole."""
    return read_verified(
        CheckpointFolder(run / "checkpoints", keep=1).path(checkpoint_steps(run)[-1])
    )


def differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    """The places where two contents are not the same bits in the same memory layout."""
    if isinstance(wanted, torch.Tensor):
        same = found.dtype == wanted.dtype and found.stride() == wanted.stride()
        return [] if same and _bits(found) == _bits(wanted) else [where]
    if isinstance(wanted, Mapping):
        if found.keys() != wanted.keys():
            return [f"names in {where}"]
        return [
            place
            for name in wanted
            for place in differences(found[name], wanted[name], f"{where}.{name}".strip("."))
        ]
    return [] if found == wanted else [f"{where}: {found} is not {wanted}"]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def state_differences(run: Path, other: Path) -> list[str]:
    """Where the newest checkpoints of two runs differ in the state of the training."""
    found, wanted = newest_checkpoint(run), newest_checkpoint(other)
    return differences({k: found[k] for k in STATE}, {k: wanted[k] for k in STATE})


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on time or on the number of starts."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [
        {name: value for name, value in line.items() if name not in TIME_FIELDS}
        for line in lines
        if line["event"] != "start"
    ]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's (step, value) by tag, as TensorBoard reads them, without times."""
    board = _board(run)
    return {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag.partition("/")[2] not in TIME_FIELDS and not tag.startswith("where_time_goes/")
    }


def image_steps(run: Path) -> list[int]:
    """The positions of TensorBoard's grids of training images."""
    return [event.step for event in _board(run).Images("train/augmented")]


def _board(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return board.Reload()
