"""A network that trains on one resident batch, plainly or as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.benchmark.device import as_options, capture
from pipeline.benchmark.options import Amp, Side
from pipeline.model.backends import Backend, problem_of
from pipeline.model.resnet import resnet
from pipeline.train.optimizer import build_optimizer

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
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
    """What is trained: ResNet-`depth` with `side`'s norm layers on images of `pixels` a side."""

    depth: int
    amp: Amp
    side: Side
    pixels: int

    @property
    def name(self) -> str:
        """As figures are called after it."""
        return f"{self.side}_resnet{self.depth}_{self.amp}"


def problem(side: Side, amp: Amp, device: torch.device) -> str | None:
    """Why `side` cannot run here, or None."""
    return as_options(problem_of(BACKENDS[side], device, amp))


class Trainee:
    """A whole step as a training takes it: forward, loss, backward, loss scaling, SGD's update.

    Channels-last, autocast, the program's own optimizer (fused on a GPU). "eager" is PyTorch's
    `nn.BatchNorm2d`, addition and ReLU, in place where torchvision's network is: the layer's
    reference backend calls just those. "compile" is the same model under `torch.compile`.
    """

    def __init__(self, setting: Setting, images: int, device: torch.device) -> None:
        """Draws the model and one batch of `images`, and takes a few steps."""
        torch.manual_seed(0)
        with device:
            model = resnet(setting.depth, _CLASSES, norm=BACKENDS[setting.side])
            pixels = setting.pixels
            self._images = torch.randn(images, 3, pixels, pixels).to(
                memory_format=torch.channels_last
            )
            self._labels = torch.randint(0, _CLASSES, (images,))
        self.model = model.train()
        self._forward: Callable[[Tensor], Tensor] = (
            torch.compile(model) if setting.side == "compile" else model
        )
        self.optimizer = build_optimizer(model, _LR, _MOMENTUM, _WEIGHT_DECAY, False)
        self._scaler = torch.amp.GradScaler(device.type, _SCALE, enabled=setting.amp == "fp16")
        self._autocast = (device.type, DTYPES[setting.amp])
        self.images = images
        self.loss = torch.zeros((), device=device)
        """Of the last plain step, a scalar on the device."""
        for _ in range(_WARM_UP_STEPS):
            self.step()

    def step(self) -> None:
        """One step, its kernels launched one by one. Never waits for the device.

        Nor does the loss scaling, as fused SGD takes the scale and the flag of a non-finite
        gradient as tensors: one of them skips the update on the device, in a graph as well.
        """
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(*self._autocast):
            loss = F.cross_entropy(self._forward(self._images), self._labels)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.loss = loss.detach()

    def captured(self) -> Callable[[], None]:
        """`step` as one CUDA graph, from zeroed gradients to the update.

        The learning rate is part of the graph. RuntimeError: it cannot be captured.
        """
        return capture(self.step)
