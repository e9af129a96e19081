"""The ten crops of a test, and the network that takes whole images of any size."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.crops import PLACES, Crop


def ten_crops(size: int, resize: int) -> tuple[Crop, ...]:
    """Centre and corners, each as it is and mirrored (Krizhevsky 2012, section 4.1)."""
    return tuple(Crop(size, resize, place, mirror) for mirror in (False, True) for place in PLACES)


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
