"""What tests of `Loader` share: a small one, and its batches with their positions."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.api.loader import Loader

SMALL = {"image_size": 32, "val_resize": 36, "threads": 1, "device": "cpu"}


def open_loader(root, split="train", **settings) -> Loader:
    return Loader(root, split, **{**SMALL, "batch_size": 8, **settings})


def batches_of(loader) -> list[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Positions, labels and images of an epoch."""
    return [(loader.positions, labels, images) for images, labels in loader]


def require_same(found, wanted) -> None:
    """Asserts that batches are the same, bit for bit, however they are cut."""
    assert found and wanted
    for one, other in zip(zip(*found, strict=True), zip(*wanted, strict=True), strict=True):
        mine, theirs = (
            torch.cat([torch.as_tensor(part) for part in parts]) for parts in (one, other)
        )
        assert torch.equal(mine, theirs)


def positions_of(loader) -> list[int]:
    return [int(position) for _ in loader for position in loader.positions]
