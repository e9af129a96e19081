"""CIFAR networks of every depth, residual or plain, from one description (He et al. 2015, section
4.2).

Layers are called as those of the ImageNet networks: conv1, bn1, layer1.0.conv1, ..., fc.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.model.backends import Backend
from pipeline.model.blocks import (
    BasicBlock,
    BlockStyle,
    Shortcut,
    convolution,
    global_average,
    initialize,
    stage,
)
from pipeline.model.norm import BatchNormAct, ends

_CHANNELS = (16, 32, 64)


def cifar_resnet(
    depth: int,
    num_classes: int,
    zero_init_last_norm: bool = False,
    norm: Backend = "reference",
    shortcut: Shortcut | None = "A",
) -> CifarResNet:
    """Builds a CIFAR network, channels-last, initialised from torch's seed.

    The network maps images (N, 3, H, W), channels-last, to logits (N, num_classes). H and W are
    free (32 in the paper); the last stage has a quarter of them, rounded up.

    Args:
        depth: 6n + 2 for a whole n >= 1; the paper has 20, 32, 44, 56, 110 and 1202.
        num_classes: width of the last layer.
        zero_init_last_norm: start the last BN of each block at scale 0; False: 1, as in the paper.
        norm: what computes the norm layers, as `backends.choose_backend` gives it.
        shortcut: see `BlockStyle`; the paper has A. None: the plain network.

    Raises:
        ValueError: no such network exists, or `norm` is not installed.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(
            f"model.depth={depth} does not exist for model.family=cifar; those that do are 6n + 2: "
            "8, 14, 20, 26, 32, ..."
        )
    model = CifarResNet(blocks, num_classes, BlockStyle(shortcut, norm))
    initialize(model, zero_init_last_norm)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch
    return model


class CifarResNet(nn.Module):
    """3x3 stem, three stages of `blocks` blocks, global average pool, linear layer; not yet
    initialised."""

    def __init__(self, blocks: int, num_classes: int, style: BlockStyle) -> None:
        super().__init__()
        w1, w2, w3 = _CHANNELS
        self.conv1 = convolution(3, w1, 3)
        self.bn1 = BatchNormAct(w1, backend=style.norm)
        self.layer1 = stage(BasicBlock, blocks, (w1, w1), 1, style)
        self.layer2 = stage(BasicBlock, blocks, (w1, w2), 2, style)
        self.layer3 = stage(BasicBlock, blocks, (w2, w3), 2, style)
        self.fc = nn.Linear(w3, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> the last stage's (N, 64, H / 4, W / 4)."""
        x = self.bn1(self.conv1(images))
        return ends(self.layer3(self.layer2(self.layer1(x))))[0]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> logits (N, num_classes)."""
        return self.fc(global_average(self.features(images)))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped
