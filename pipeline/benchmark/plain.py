"""The plainest training loop, on images in memory; also with CUDA graphs, as the program has them.

The program is compared with it, and it measures whole steps where DALI is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.benchmark.device import DTYPES
from pipeline.benchmark.options import Amp, Side
from pipeline.config import ModelConfig
from pipeline.model.backends import Backend
from pipeline.model.resnet import ResNet, build_network
from pipeline.train.graphs import GraphedNetwork
from pipeline.train.optimizer import build_optimizer
from pipeline.train.precision import Mode

BACKENDS: dict[Side, Backend] = {
    "eager": "reference",
    "compile": "reference",
    "triton": "triton",
    "apex": "apex",
}
_CLASSES = 1000
# Labels are noise: a rate that learns them slowly keeps every number finite.
_LR, _MOMENTUM, _WEIGHT_DECAY = 1e-3, 0.9, 1e-4
_SCALE = 2.0**7  # usual ones begin by overflowing, and steps would be skipped
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Setting:
    """The network trained: ResNet-`depth` with `side`'s norm layers on images of `pixels` a
    side."""

    depth: int
    amp: Amp
    side: Side
    pixels: int

    @property
    def network(self) -> str:
        """The name of ratios between sides."""
        return f"resnet{self.depth}_{self.amp}"

    @property
    def name(self) -> str:
        """The name of figures."""
        return f"{self.side}_{self.network}"


class PlainTraining:
    """Forward, loss, backward, loss scaling and update of `model`, by `optimizer`, on (images,
    labels) of `batches`, which come again and again."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, amp: Mode,
        batches: Sequence[tuple[Tensor, Tensor]], compiled: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.optimizer = model.train(), optimizer
        self._forward: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
        self._amp, self._given, self._batches = amp, batches, cycle(batches)
        device = batches[0][0].device
        self._scaler = torch.amp.GradScaler(device.type, _SCALE, enabled=amp == "fp16")
        self._autocast = torch.autocast(device.type, DTYPES.get(amp), enabled=amp in DTYPES)
        self.loss = torch.zeros((), device=device)
        """Loss of the last step, a scalar on the device."""

    def in_graphs(self) -> PlainTraining:
        """The same training with the stages of its network, a `ResNet`, as CUDA graphs: what
        `model.graphs` trains. Its first step records them."""
        graphed = PlainTraining(self.model, self.optimizer, self._amp, self._given)
        device = self.loss.device.type
        autocast = partial(
            torch.autocast, device, DTYPES.get(self._amp), enabled=self._amp in DTYPES,
            cache_enabled=False,
        )  # fmt: skip
        graphed._forward = GraphedNetwork(cast(ResNet, self.model), autocast, accumulates=False)
        return graphed

    def step(self) -> None:
        """Takes one step. Never waits for the device.

        Nor does loss scaling, as fused SGD takes the scale and the flag of a non-finite gradient
        as tensors: the flag skips the update on the device.
        """
        images, labels = next(self._batches)
        with self._autocast:
            loss = F.cross_entropy(self._forward(images), labels)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self.optimizer)
        self._scaler.update()
        # At the end, as in the program that it is compared with.
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = loss.detach()


def train_setting(setting: Setting, images: int, device: torch.device) -> PlainTraining:
    """Initialises the model and one batch of `images`, and takes a few steps.

    Channels-last, autocast, the program's own optimizer (fused on a GPU). "eager" is PyTorch's
    `nn.BatchNorm2d`, addition and ReLU, in place where torchvision's network is: the layer's
    reference backend calls just those. "compile" is the same model under `torch.compile`.
    """
    torch.manual_seed(0)
    with device:
        # With the last scale of each block at 0 most of a first step's gradients would be 0.
        network = ModelConfig(depth=setting.depth, zero_init_last_norm=False)
        model = build_network(network, _CLASSES, BACKENDS[setting.side])
        noise = torch.randn(images, 3, setting.pixels, setting.pixels)
        labels = torch.randint(0, _CLASSES, (images,))
    batch = (noise.to(memory_format=torch.channels_last), labels)
    optimizer = build_optimizer(model, _LR, _MOMENTUM, _WEIGHT_DECAY, False)
    training = PlainTraining(
        model, optimizer, setting.amp, [batch], compiled=setting.side == "compile"
    )
    for _ in range(_WARM_UP_STEPS):
        training.step()
    return training
