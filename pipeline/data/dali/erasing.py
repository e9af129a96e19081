"""Erases rectangles of finished images, on the CPU or a GPU, wherever they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn

from pipeline.data.crops import Plan
from pipeline.data.dali.settings import DecodeSettings


def box_inputs(plan: Plan, erased_with: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """A graph's inputs for what `plan` erases, none if it plans nothing of the kind: corner (B, 2)
    (y, x), sides (B, 2), and, if given, what stands there then (B, 3)."""
    if plan.erased is None:
        return ()
    boxes = np.ascontiguousarray(plan.erased, dtype=np.float32)
    inputs = np.ascontiguousarray(boxes[:, :2]), np.ascontiguousarray(boxes[:, 2:])
    if erased_with is None:
        return inputs
    return (*inputs, np.ascontiguousarray(erased_with, dtype=np.float32))


def input_count(settings: DecodeSettings) -> int:
    """How many `box_inputs` a graph has."""
    if settings.effects.erasing is None:
        return 0
    return 3 if settings.output == "uint8" else 2


def erased(images: Any, nodes: list[Any]) -> Any:
    """Adds a node: `images` (H, W, 3) without the rectangles that the nodes of `box_inputs` give.

    0 stands there then, which is the mean of normalised pixels and torchvision's default; of uint8,
    which has no such value, the level next to the mean, half a level from it at most.
    """
    if not nodes:
        return images
    corner, sides, *filled = nodes
    fill_value = filled[0] if filled else 0.0
    return fn.erase(images, anchor=corner, shape=sides, axis_names="HW", fill_value=fill_value)
