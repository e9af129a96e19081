"""The ResNet paper's plain and residual networks, with their initial weights.

From the bottom up: convolutions and shortcuts, the two blocks, the network, and its construction
from the settings of `model`: ImageNet's family (table 1) or CIFAR's (section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import Config, ModelConfig
from pipeline.config.training import Shortcut, Variant, has_bottlenecks
from pipeline.model.backends import Backend, choose_backend, make_norm
from pipeline.model.network import shortcut_of
from pipeline.model.norm import BatchNormAct, Fork, ends


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common."""

    shortcut: Shortcut | None
    """The shortcut of a block that changes the shape (section 3.3). A: strided, channels padded
    with zeros; B: a 1x1 projection; C: a projection in every block. None: no shortcuts, the plain
    network."""
    norm: Backend = "reference"
    """Backend of the norm layers, as `backends.choose_backend` gives it."""
    variant: Variant = "v1.5"
    """Where a bottleneck halves the resolution: "v1" in its first 1x1, as the paper has it, "v1.5"
    in its 3x3. Basic blocks are the same in both."""


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps H and W but for its stride. No bias: the BN that follows has one."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class ZeroPadding(nn.Module):
    """Option A: every `stride`-th pixel of each direction, and zeros for the missing channels.

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
    """The module that brings a block's input to the shape of its output; None for the identity, and
    in plain networks."""
    same = in_channels == out_channels and stride == 1
    if style.shortcut is None or (same and style.shortcut != "C"):
        return None
    if style.shortcut == "A":
        return ZeroPadding(in_channels, out_channels, stride)
    return nn.Sequential(
        convolution(in_channels, out_channels, 1, stride),
        make_norm(style.norm, out_channels, relu=False),
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


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the stride is on the first (figure 5, left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn1 = make_norm(style.norm, out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.bn2 = make_norm(style.norm, out_channels)
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
        self.bn1 = make_norm(style.norm, width)
        self.conv2 = convolution(width, width, 3, stride_3x3)
        self.bn2 = make_norm(style.norm, width)
        self.conv3 = convolution(width, out_channels, 1)
        self.bn3 = make_norm(style.norm, out_channels)
        self.downsample = shape_change(in_channels, out_channels, stride, style)

    def forward(self, x: Tensor | Fork) -> Tensor | Fork:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        x, skip = ends(x)
        y = self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        return add_shortcut(self.bn3, y, skip, self.downsample)


BlockFactory = Callable[[int, int, int, BlockStyle], BasicBlock | Bottleneck]
"""(in_channels, out_channels, stride, style) -> a block."""


def global_average(x: Tensor) -> Tensor:
    """(N, C, H, W), channels-last -> (N, C), the mean over H and W.

    The mean is taken over the NHWC view: the gradient of `adaptive_avg_pool2d` is row-major, and
    with its backward pass that took 25 ms against 5 ms for (64, 512, 7, 7) fp32 on one core
    (torch 2.13).
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


@dataclass(frozen=True)
class Stage:
    """A part of a network that follows the one before it."""

    run: Callable[[Tensor | Fork], Tensor | Fork]
    parameters: tuple[nn.Parameter, ...]


class ResNet(nn.Module):
    """Stem, stages of blocks, global average pool, linear layer; not yet initialised.

    The first stage has the channels of the stem, times 4 in bottlenecks; each later one doubles
    them and halves H and W.
    """

    def __init__(
        self, stem: nn.Conv2d, pool: nn.Module | None, block: BlockFactory, blocks: Sequence[int],
        num_classes: int, style: BlockStyle,
    ) -> None:  # fmt: skip
        """`pool` follows the stem, `blocks` is how many there are in each stage."""
        super().__init__()
        channels = stem.out_channels
        self.conv1 = stem
        self.bn1 = make_norm(style.norm, channels)
        self.maxpool = pool
        self._stages = [f"layer{number}" for number in range(1, len(blocks) + 1)]
        widths = [channels * (4 if block is Bottleneck else 1) << n for n in range(len(blocks))]
        for name, count, width in zip(self._stages, blocks, widths, strict=True):
            first = block(channels, width, 1 if name == "layer1" else 2, style)
            later = (block(width, width, 1, style) for _ in range(count - 1))
            self.add_module(name, nn.Sequential(first, *later))
            channels = width
        self.fc = nn.Linear(channels, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> what the last stage makes of them."""
        x: Tensor | Fork = self._stem(images)
        for name in self._stages:
            x = getattr(self, name)(x)
        return ends(x)[0]

    def stages(self) -> list[Stage]:
        """The network as parts, images first, logits last: stem, stages, pooling with the linear
        layer."""
        stem = Stage(self._stem, (*self.conv1.parameters(), *self.bn1.parameters()))
        layers = (getattr(self, name) for name in self._stages)
        between = [Stage(layer, tuple(layer.parameters())) for layer in layers]
        return [stem, *between, Stage(self._head, tuple(self.fc.parameters()))]

    def _stem(self, images: Tensor | Fork) -> Tensor:
        x: Tensor = self.bn1(self.conv1(images))
        return x if self.maxpool is None else self.maxpool(x)

    def _head(self, x: Tensor | Fork) -> Tensor:
        return self.fc(global_average(ends(x)[0]))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), channels-last -> logits (N, num_classes)."""
        return self._head(self.features(images))


def _initialize(model: ResNet, zero_init_last_norm: bool) -> None:
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


# Depth -> blocks in each of the four stages (table 1).
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
           152: (3, 8, 36, 3)}  # fmt: skip


def build_network(config: ModelConfig, classes: int, norm: Backend = "reference") -> ResNet:
    """Builds the network, channels-last, its initial weights drawn from torch's seed.

    It maps images (N, 3, H, W), channels-last, to logits (N, classes); `features` gives what its
    pooling gets. H and W are free (224 in the paper, for CIFAR 32); the last stage has a 32nd of
    them, of CIFAR's family a quarter, rounded up.

    Args:
        config: which network.
        classes: width of the last layer.
        norm: what computes the norm layers, as `backends.choose_backend` gives it.

    Raises:
        ValueError: `norm` is not installed.
    """
    style = BlockStyle(shortcut_of(config), norm, config.variant)
    if config.family == "cifar":
        blocks = [(config.depth - 2) // 6] * 3
        model = ResNet(convolution(3, 16, 3), None, BasicBlock, blocks, classes, style)
    else:
        wide = has_bottlenecks(config.family, config.depth)
        block: BlockFactory = Bottleneck if wide else BasicBlock
        stem, pool = convolution(3, 64, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)
        model = ResNet(stem, pool, block, _BLOCKS[config.depth], classes, style)
    _initialize(model, config.zero_init_last_norm)
    # A 1x1 weight is in both layouts at once. Its NHWC view is contiguous whatever strides its
    # dimensions of size 1 have, and the fused optimizers do not compare those either.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # missing in torch


def make_model(config: Config, classes: int, device: torch.device) -> ResNet:
    """The network with its initial weights, drawn on the CPU so that every device starts alike.

    Raises `ValueError` if the norm backend that was asked for cannot run on `device`.
    """
    norm = choose_backend(config.model.norm, device, config.optim.amp)
    torch.manual_seed(config.run.seed)
    return build_network(config.model, classes, norm).to(device)
