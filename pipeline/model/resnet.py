"""ImageNet networks of every depth, residual or plain, from one description (He et al. 2015, table
1).

Parameter names are those of torchvision, so that weights can be exchanged:
conv1, bn1, layer1.0.conv1, ..., layer2.0.downsample.0, ..., fc.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.model.backends import Backend
from pipeline.model.blocks import (
    BasicBlock,
    BlockFactory,
    BlockStyle,
    Bottleneck,
    Shortcut,
    Variant,
    convolution,
    global_average,
    initialize,
    stage,
)
from pipeline.model.norm import BatchNormAct, ends

# Depth -> blocks in each of the four stages (table 1).
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_STEM_CHANNELS = 64


def resnet(
    depth: int,
    num_classes: int,
    variant: Variant = "v1.5",
    zero_init_last_norm: bool = False,
    norm: Backend = "reference",
    shortcut: Shortcut | None = "B",
) -> ResNet:
    """Builds an ImageNet network, channels-last, initialised from torch's seed.

    The network maps images (N, 3, H, W), channels-last, to logits (N, num_classes). H and W are
    free (224 in the paper); the last stage has a 32nd of them, rounded up.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        num_classes: width of the last layer.
        variant: see `BlockStyle`.
        zero_init_last_norm: start the last BN of each block at scale 0, so that every block
            begins as the identity (Goyal et al. 2017, section 5.1); False: 1, as in the paper, and
            what a plain network needs.
        norm: what computes the norm layers, as `backends.choose_backend` gives it.
        shortcut: see `BlockStyle`; None: the plain network, of 18 or 34 layers.

    Raises:
        ValueError: no such network exists, or `norm` is not installed.
    """
    plain = shortcut is None
    sizes = _BASIC if plain else _BASIC | _BOTTLENECK
    if depth not in sizes:
        depths = ", ".join(map(str, sorted(sizes)))
        kind = " as a plain network" if plain else ""
        raise ValueError(f"model.depth={depth} does not exist{kind}; those that do: {depths}")
    block: BlockFactory = BasicBlock if depth in _BASIC else Bottleneck
    model = ResNet(block, sizes[depth], num_classes, BlockStyle(shortcut, norm, variant))
    initialize(model, zero_init_last_norm)
    # A 1x1 weight is in both layouts at once. Its NHWC view is contiguous whatever strides its
    # dimensions of size 1 have, and the fused optimizers do not compare those either.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch
    return model


class ResNet(nn.Module):
    """Stem, four stages of blocks, global average pool, linear layer; not yet initialised."""

    def __init__(
        self, block: BlockFactory, blocks: Sequence[int], num_classes: int, style: BlockStyle
    ) -> None:
        super().__init__()
        expansion = 1 if block is BasicBlock else 4
        w1, w2, w3, w4 = (expansion * channels for channels in (64, 128, 256, 512))
        self.conv1 = convolution(3, _STEM_CHANNELS, 7, stride=2)
        self.bn1 = BatchNormAct(_STEM_CHANNELS, backend=style.norm)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(block, blocks[0], (_STEM_CHANNELS, w1), 1, style)
        self.layer2 = stage(block, blocks[1], (w1, w2), 2, style)
        self.layer3 = stage(block, blocks[2], (w2, w3), 2, style)
        self.layer4 = stage(block, blocks[3], (w3, w4), 2, style)
        self.fc = nn.Linear(w4, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> the last stage's (N, C, H / 32, W / 32)."""
        x = self.maxpool(self.bn1(self.conv1(images)))
        return ends(self.layer4(self.layer3(self.layer2(self.layer1(x)))))[0]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> logits (N, num_classes)."""
        return self.fc(global_average(self.features(images)))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped
