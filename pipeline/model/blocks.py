"""What every ResNet is made of: residual blocks, their shortcuts, initial weights (section 3).

Parameter names are those of torchvision: conv1, bn1, ..., downsample.0, downsample.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.backends import Backend
from pipeline.model.norm import BatchNormAct, Fork, ends

Variant = Literal["v1", "v1.5"]
Shortcut = Literal["A", "B", "C"]


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common."""

    shortcut: Shortcut | None
    """What stands beside a block where the shape changes (section 3.3). A: strided, channels padded
    with zeros; B: a 1x1 projection; C: a projection beside every block. None: nothing stands beside
    any block, the plain network."""
    norm: Backend = "reference"
    """What computes the norm layers, as `backends.choose_backend` gives it."""
    variant: Variant = "v1.5"
    """Where a bottleneck halves the resolution: "v1" in its first 1x1, as the paper has it, "v1.5"
    in its 3x3. Basic blocks are the same in both."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the stride is on the first (figure 5, left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn1 = BatchNormAct(out_channels, backend=style.norm)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.bn2 = BatchNormAct(out_channels, backend=style.norm)
        self.residual = style.shortcut is not None
        self.downsample = shape_change(in_channels, out_channels, stride, style)

    def forward(self, x: Tensor | Fork) -> Tensor | Fork:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        x, skip = ends(x)
        y = self.conv2(self.bn1(self.conv1(x)))
        if not self.residual:
            return self.bn2(y)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped
        return add_shortcut(self.bn2, y, skip, self.downsample)


class Bottleneck(nn.Module):
    """1x1 down to a quarter of the channels, 3x3, 1x1 up, and a shortcut (figure 5, right)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        assert style.shortcut is not None, "the paper has no plain network of bottlenecks"
        width = out_channels // 4
        stride_1x1, stride_3x3 = {"v1": (stride, 1), "v1.5": (1, stride)}[style.variant]
        self.conv1 = convolution(in_channels, width, 1, stride_1x1)
        self.bn1 = BatchNormAct(width, backend=style.norm)
        self.conv2 = convolution(width, width, 3, stride_3x3)
        self.bn2 = BatchNormAct(width, backend=style.norm)
        self.conv3 = convolution(width, out_channels, 1)
        self.bn3 = BatchNormAct(out_channels, backend=style.norm)
        self.downsample = shape_change(in_channels, out_channels, stride, style)

    def forward(self, x: Tensor | Fork) -> Tensor | Fork:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        x, skip = ends(x)
        y = self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        return add_shortcut(self.bn3, y, skip, self.downsample)


BlockFactory = Callable[[int, int, int, BlockStyle], BasicBlock | Bottleneck]
"""(in_channels, out_channels, stride, style) -> a block."""


class ZeroPadding(nn.Module):
    """Option A: every `stride`-th pixel of each direction, and zeros as the channels that lack.

    The new channels come last, as in fb.resnet.torch; the paper does not say where.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), channels-last.

        Works on the NHWC view: the gradient of a slice is row-major in its own dimensions.
        """
        rows = x.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride]
        return F.pad(rows, (0, self.extra_channels)).permute(0, 3, 1, 2)


def shape_change(
    in_channels: int, out_channels: int, stride: int, style: BlockStyle
) -> nn.Sequential | ZeroPadding | None:
    """What turns a block's input into the shape of its output; None is the identity, and what a
    plain network has."""
    same = in_channels == out_channels and stride == 1
    if style.shortcut is None or (same and style.shortcut != "C"):
        return None
    if style.shortcut == "A":
        return ZeroPadding(in_channels, out_channels, stride)
    return nn.Sequential(
        convolution(in_channels, out_channels, 1, stride),
        BatchNormAct(out_channels, relu=False, backend=style.norm),
    )


def add_shortcut(
    norm: BatchNormAct, y: Tensor, skip: Tensor, change: nn.Sequential | ZeroPadding | None
) -> Tensor | Fork:
    """relu(norm(y) + shortcut(skip)), the end of a block.

    A projection's parts are called one by one, so that its norm can be computed with the other.
    """
    if isinstance(change, nn.Sequential):
        project, residual_norm = change
        return norm(y, project(skip), residual_norm, fork=True)  # type: ignore[no-any-return]
    residual = skip if change is None else change(skip)
    return norm(y, residual, fork=True)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def stage(
    block: BlockFactory, count: int, channels: tuple[int, int], stride: int, style: BlockStyle
) -> nn.Sequential:
    """`count` blocks; the first goes from the one to the other of `channels`, with `stride`."""
    first = block(*channels, stride, style)
    out = channels[1]
    return nn.Sequential(first, *(block(out, out, 1, style) for _ in range(count - 1)))


def global_average(x: Tensor) -> Tensor:
    """(N, C, H, W), channels-last -> (N, C), the mean over H and W.

    The mean is taken over the NHWC view: the gradient of `adaptive_avg_pool2d` is row-major, and
    with its backward pass that took 25 ms against 5 ms for (64, 512, 7, 7) fp32 on one core
    (torch 2.13).
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


def initialize(model: nn.Module, zero_init_last_norm: bool) -> None:
    """Draws the weights of `model` from torch's global generator, in the order of its modules.

    Convolutions: N(0, 2 / fan_out), the backward case of He et al. 2015 ("Delving Deep into
    Rectifiers", equation 14), as in the authors' later implementations. Linear: N(0, 0.01^2),
    bias 0 (Goyal et al. 2017, section 5.1; the ResNet paper is silent). BN: scale 1, shift 0;
    with `zero_init_last_norm` the last BN of each block scale 0 (Goyal et al. 2017).
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


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps H and W but for its stride. No bias: the BN that follows has one."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
