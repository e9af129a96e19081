"""Views of an image in a test: crops, or the whole image at a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.crops import CenterCrop, Plan

Place = Literal["centre", "top left", "top right", "bottom left", "bottom right"]
PLACES: tuple[Place, ...] = ("centre", "top left", "top right", "bottom left", "bottom right")


class View(Protocol):
    """One way of looking at test images."""

    def plan(self, heights: NDArray[np.int32], widths: NDArray[np.int32]) -> Plan:
        """Plan B images of the given sizes (B,) in pixels, all of which get one shape."""


@dataclass(frozen=True)
class Crop:
    """Shorter side to `resize` pixels, then the square of `size` at `place`, mirrored or not.

    Sides, and the place of the centre, are rounded as `CenterCrop` does.
    """

    size: int
    resize: int
    place: Place = "centre"
    mirror: bool = False

    def plan(self, heights: NDArray[np.int32], widths: NDArray[np.int32]) -> Plan:
        """Plan B images of any sizes (B,) in pixels."""
        words = np.empty((len(heights), 0), dtype=np.uint64)
        centre = CenterCrop(self.size, self.resize).plan(heights, widths, words)
        boxes = centre.boxes.copy()
        if self.place != "centre":
            down, across = self.place.split()
            boxes[:, 0] = _last_start(heights, boxes[:, 2]) if down == "bottom" else 0
            boxes[:, 1] = _last_start(widths, boxes[:, 3]) if across == "right" else 0
        return Plan(boxes, _flips(len(heights), self.mirror), centre.offsets, centre.shape)


@dataclass(frozen=True)
class WholeImage:
    """The whole image, its shorter side resized to `short_side` pixels, mirrored or not.

    The longer side is truncated, as torchvision's Resize(short_side) does.
    """

    short_side: int
    mirror: bool = False

    def shapes(
        self, heights: NDArray[np.int32], widths: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return height and width in pixels of the views of images of the given sizes (B,)."""
        high, wide = (np.maximum(side, 1).astype(np.int64) for side in (heights, widths))
        shorter = np.minimum(high, wide)
        return self.short_side * high // shorter, self.short_side * wide // shorter

    def plan(self, heights: NDArray[np.int32], widths: NDArray[np.int32]) -> Plan:
        """Plan B images whose sizes (B,) give one shape."""
        high, wide = self.shapes(heights, widths)
        assert (high == high[0]).all() and (wide == wide[0]).all(), "views of several shapes"
        count = len(heights)
        return Plan(
            whole_boxes(heights, widths),
            _flips(count, self.mirror),
            np.zeros((count, 3), dtype=np.float32),
            (int(high[0]), int(wide[0])),
        )


def ten_crops(size: int, resize: int) -> tuple[Crop, ...]:
    """Centre and corners, each as it is and mirrored (Krizhevsky 2012, section 4.1)."""
    return tuple(Crop(size, resize, place, mirror) for mirror in (False, True) for place in PLACES)


def whole_boxes(heights: NDArray[np.int32], widths: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the boxes (B, 4) of whole images of the given sizes (B,) in pixels, at least 1."""
    boxes = np.zeros((len(heights), 4), dtype=np.float32)
    boxes[:, 2], boxes[:, 3] = np.maximum(heights, 1), np.maximum(widths, 1)
    return boxes


def _last_start(sides: NDArray[np.int32], extents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return where a box (B,) that ends with the image begins; as float32 it ends inside, too."""
    latest = np.maximum(sides, 1) - extents.astype(np.float64)
    start = latest.astype(np.float32)
    past = start > latest
    start[past] = np.nextafter(start[past], np.float32(-1.0))
    return start


def _flips(count: int, mirror: bool) -> NDArray[np.int32]:
    return np.full(count, int(mirror), dtype=np.int32)


class FullyConvolutional(nn.Module):
    """A network's classifier as a 1x1 convolution over its feature map, pooled at the end.

    Each cell of the score map is what the dense network makes of one window of `window` x `window`
    cells of the feature map (7 at 224 pixels): average pooling with stride 1, then `fc` as a 1x1
    convolution. The image's score is the mean over cells. On an image of the training's size there
    is one cell, and the scores are the dense network's.

    The parameters are those of `network`, shared.
    """

    def __init__(self, network: nn.Module, window: int) -> None:
        """`network` has `features` and `fc`, as `pipeline.model.network.build_network` makes it."""
        super().__init__()
        self.network = network
        self.window = window

    def score_map(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> the scores of every window, (N, classes, h, w).

        The feature map must hold a window: `protocol.smallest_scale` says from which side on.
        """
        classifier = cast(nn.Linear, self.network.fc)
        maps = cast(Tensor, self.network.features(images))  # type: ignore[operator]  # a method
        pooled = F.avg_pool2d(maps, self.window, stride=1)
        return F.conv2d(pooled, classifier.weight[:, :, None, None], classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> logits (N, classes)."""
        return self.score_map(images).mean(dim=(2, 3))
