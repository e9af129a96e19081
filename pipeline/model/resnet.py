"""ImageNet ResNets of every depth from one description (He et al. 2015, section 4.1, table 1).

Parameter names are those of torchvision, so that weights can be exchanged:
conv1, bn1, layer1.0.conv1, ..., layer2.0.downsample.0, ..., fc.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.model.backends import Backend
from pipeline.model.norm import BatchNormAct, Fork, ends

Variant = Literal["v1", "v1.5"]

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
) -> nn.Module:
    """Builds a ResNet with option-B shortcuts, channels-last, initialised from torch's seed.

    The network maps images (N, 3, H, W), channels-last, to logits (N, num_classes). H and W are
    free (224 in the paper); the last stage has a 32nd of them, rounded up.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        num_classes: width of the last layer.
        variant: where a bottleneck halves the resolution: "v1" in its first 1x1, as the paper has
            it, "v1.5" in its 3x3. Networks of basic blocks are the same in both.
        zero_init_last_norm: start the last BN of each block at scale 0, so that every block
            begins as the identity (Goyal et al. 2017, section 5.1); False: 1, as in the paper.
        norm: what computes the norm layers, as `backends.choose_backend` gives it.

    Raises:
        ValueError: no ResNet of that depth exists, or `norm` is not installed.
    """
    block: BlockFactory
    if depth in _BASIC:
        blocks, block, expansion = _BASIC[depth], partial(BasicBlock, norm=norm), 1
    elif depth in _BOTTLENECK:
        block = partial(Bottleneck, variant=variant, norm=norm)
        blocks, expansion = _BOTTLENECK[depth], 4
    else:
        depths = ", ".join(map(str, sorted(_BASIC | _BOTTLENECK)))
        raise ValueError(f"model.depth={depth} does not exist; those that do: {depths}")
    widths = [expansion * channels for channels in (64, 128, 256, 512)]
    model = ResNet(block, blocks, widths, num_classes, norm)
    initialize(model, zero_init_last_norm)
    # A 1x1 weight is in both layouts at once. Its NHWC view is contiguous whatever strides its
    # dimensions of size 1 have, and the fused optimizers do not compare those either.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch
    return model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the stride is on the first (figure 5, left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Backend) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, 3, stride)
        self.bn1 = BatchNormAct(out_channels, backend=norm)
        self.conv2 = _conv(out_channels, out_channels, 3)
        self.bn2 = BatchNormAct(out_channels, backend=norm)
        self.downsample = shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor | Fork) -> Tensor | Fork:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        x, skip = ends(x)
        y = self.conv2(self.bn1(self.conv1(x)))
        return add_shortcut(self.bn2, y, skip, self.downsample)


class Bottleneck(nn.Module):
    """1x1 down to a quarter of the channels, 3x3, 1x1 up, and a shortcut (figure 5, right)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, variant: Variant, norm: Backend
    ) -> None:
        super().__init__()
        width = out_channels // 4
        stride_1x1, stride_3x3 = {"v1": (stride, 1), "v1.5": (1, stride)}[variant]
        self.conv1 = _conv(in_channels, width, 1, stride_1x1)
        self.bn1 = BatchNormAct(width, backend=norm)
        self.conv2 = _conv(width, width, 3, stride_3x3)
        self.bn2 = BatchNormAct(width, backend=norm)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = BatchNormAct(out_channels, backend=norm)
        self.downsample = shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor | Fork) -> Tensor | Fork:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        x, skip = ends(x)
        y = self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        return add_shortcut(self.bn3, y, skip, self.downsample)


BlockFactory = Callable[[int, int, int], BasicBlock | Bottleneck]
"""(in_channels, out_channels, stride) -> a block."""


class ResNet(nn.Module):
    """Stem, four stages of blocks, global average pool, linear layer; not yet initialised."""

    def __init__(
        self, block: BlockFactory, blocks: Sequence[int], widths: Sequence[int], num_classes: int,
        norm: Backend,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = _conv(3, _STEM_CHANNELS, 7, stride=2)
        self.bn1 = BatchNormAct(_STEM_CHANNELS, backend=norm)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(block, blocks[0], _STEM_CHANNELS, widths[0], stride=1)
        self.layer2 = stage(block, blocks[1], widths[0], widths[1], stride=2)
        self.layer3 = stage(block, blocks[2], widths[1], widths[2], stride=2)
        self.layer4 = stage(block, blocks[3], widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> logits (N, num_classes)."""
        x = self.maxpool(self.bn1(self.conv1(images)))
        x, _ = ends(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.fc(global_average(x))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def global_average(x: Tensor) -> Tensor:
    """(N, C, H, W), channels-last -> (N, C), the mean over H and W.

    The mean is taken over the NHWC view: the gradient of `adaptive_avg_pool2d` is row-major, and
    with its backward pass that took 25 ms against 5 ms for (64, 512, 7, 7) fp32 on one core
    (torch 2.13).
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


def stage(
    block: BlockFactory, count: int, in_channels: int, out_channels: int, stride: int
) -> nn.Sequential:
    """`count` blocks of one width; the first changes width and resolution."""
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(count - 1)))


def shortcut(
    in_channels: int, out_channels: int, stride: int, norm: Backend
) -> nn.Sequential | None:
    """What stands beside a block; None is the identity.

    Option B (section 3.3): a 1x1 projection where the shape changes, the identity elsewhere.
    """
    if in_channels == out_channels and stride == 1:
        return None
    return nn.Sequential(
        _conv(in_channels, out_channels, 1, stride),
        BatchNormAct(out_channels, relu=False, backend=norm),
    )


def add_shortcut(
    norm: BatchNormAct, y: Tensor, skip: Tensor, projection: nn.Sequential | None
) -> Tensor | Fork:
    """relu(norm(y) + shortcut(skip)), the end of a block.

    The projection's parts are called one by one, so that its norm can be computed with the other.
    """
    if projection is None:
        return norm(y, skip, fork=True)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped
    convolution, residual_norm = projection
    return norm(y, convolution(skip), residual_norm, fork=True)  # type: ignore[no-any-return]


def initialize(model: nn.Module, zero_init_last_norm: bool) -> None:
    """Draws the weights of `model` from torch's global generator, in the order of its modules.

    Convolutions: N(0, 2 / fan_out), the backward case of He et al. 2015 ("Delving Deep into
    Rectifiers", equation 14), as in the authors' later implementations. Linear: N(0, 0.01^2),
    bias 0 (Goyal et al. 2017, section 5.1; the ResNet paper is silent). BN: scale 1, shift 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, BasicBlock) and zero_init_last_norm:
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, Bottleneck) and zero_init_last_norm:
            nn.init.zeros_(module.bn3.weight)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    # No bias: the BN that follows has its own.
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
