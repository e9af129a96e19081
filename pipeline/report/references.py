"""The errors that the paper and later work state, each with its source.

Errors in %, on the validation images of ImageNet-1k and the test images of CIFAR-10. Where a
source states accuracies, the error is 100 minus that. Sources:

- paper: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015.
- released weights: the authors' models, as published with the paper's code.
- Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017.
- fb.resnet.torch, torchvision (weights V1), NVIDIA DeepLearningExamples (ConvNets, PyTorch, AMP)
  and FFCV: the tables that these projects publish with their code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.model.network import Network, plain, resnet

DataSet = Literal["imagenet-1k", "cifar-10"]
Protocol = Literal["1-crop", "10-crop", "multi-scale"]

IMAGENET_CROP = (224, 256)
"""Side of the crops, and shorter side they are cut from, of every 1-crop and 10-crop number."""

MULTI_SCALES = (224, 256, 384, 480, 640)
"""Shorter sides in pixels of the paper's multi-scale test (section 3.4)."""


@dataclass(frozen=True)
class Recipe:
    """What a run must have been trained with to stand beside a number; None: anything."""

    epochs: float | None = None
    global_batch_size: int | None = None
    warmup: bool | None = None


@dataclass(frozen=True)
class Reference:
    """One stated number. `top1` and `top5` are errors in %, None where the source has none.

    `spread` is the standard deviation of `top1` over runs; `ensemble` the number of networks.
    """

    network: Network | None
    protocol: Protocol
    source: str
    top1: float | None = None
    top5: float | None = None
    spread: float | None = None
    note: str = ""
    recipe: Recipe = Recipe()
    ensemble: int = 1


@dataclass(frozen=True)
class Table:
    """References that are shown together, on one data set."""

    title: str
    data: DataSet
    rows: tuple[Reference, ...]


def tables() -> tuple[Table, ...]:
    """Every table of a report, in order."""
    return (
        Table("ImageNet, ten crops", "imagenet-1k", _ten_crops()),
        Table("ImageNet, single model, five scales", "imagenet-1k", _multi_scale()),
        Table("ImageNet, one crop: the authors' released weights", "imagenet-1k", _released()),
        Table("ImageNet, later references", "imagenet-1k", (*_goyal(), *_fb(), *_later())),
        Table("CIFAR-10, the single 32x32 view", "cifar-10", _cifar()),
    )


def _ten_crops() -> tuple[Reference, ...]:
    two, three, both = "paper, Table 2", "paper, Table 3", "paper, Tables 2 and 3"
    return (
        Reference(plain(18), "10-crop", two, 27.94),
        Reference(plain(34), "10-crop", both, 28.54, 10.02),
        Reference(resnet(18, "A"), "10-crop", two, 27.88),
        Reference(resnet(34, "A"), "10-crop", both, 25.03, 7.76),
        Reference(resnet(34, "B"), "10-crop", three, 24.52, 7.46),
        Reference(resnet(34, "C"), "10-crop", three, 24.19, 7.40),
        Reference(resnet(50), "10-crop", three, 22.85, 6.71),
        Reference(resnet(101), "10-crop", three, 21.75, 6.05),
        Reference(resnet(152), "10-crop", three, 21.43, 5.71),
    )


def _multi_scale() -> tuple[Reference, ...]:
    rows = [
        (resnet(34, "B"), 21.84, 5.71), (resnet(34, "C"), 21.53, 5.60), (resnet(50), 20.74, 5.25),
        (resnet(101), 19.87, 4.60), (resnet(152), 19.38, 4.49),
    ]  # fmt: skip
    six = Reference(
        None, "multi-scale", "paper, Table 5", None, 3.57, ensemble=6,
        note="theirs on the test images, ours on the validation images",
    )  # fmt: skip
    return (
        *(Reference(net, "multi-scale", "paper, Table 4", top1, top5) for net, top1, top5 in rows),
        six,
    )


def _released() -> tuple[Reference, ...]:
    rows = [(50, 24.7, 7.8), (101, 23.6, 7.1), (152, 23.0, 6.7)]
    return tuple(
        Reference(resnet(depth), "1-crop", "released weights", top1, top5)
        for depth, top1, top5 in rows
    )


def _goyal() -> tuple[Reference, ...]:
    rows = [
        (50, 23.60, 0.12, 256, None), (50, 23.74, 0.09, 8192, True), (50, 24.84, None, 8192, False),
        (101, 22.08, None, 256, None), (101, 22.36, None, 8192, True),
    ]  # fmt: skip
    warm = {None: "", True: ", 5 epochs of warm-up", False: ", no warm-up"}
    return tuple(
        Reference(
            resnet(depth, variant="v1.5"), "1-crop", "Goyal et al. 2017", error, None, spread,
            f"90 epochs, batch {batch}{warm[warmup]}", Recipe(90, batch, warmup),
        )
        for depth, error, spread, batch, warmup in rows
    )  # fmt: skip


def _fb() -> tuple[Reference, ...]:
    rows = [
        (18, 30.43, 28.22), (34, 26.73, 24.76), (50, 24.01, 22.24), (101, 22.44, 21.08),
        (152, 22.16, 20.69),
    ]  # fmt: skip
    protocols: tuple[Protocol, Protocol] = ("1-crop", "10-crop")
    return tuple(
        Reference(
            resnet(depth, variant="v1.5"), protocol, "fb.resnet.torch", error,
            note="90 epochs", recipe=Recipe(90),
        )
        for depth, *errors in rows
        for protocol, error in zip(protocols, errors, strict=True)
    )  # fmt: skip


def _later() -> tuple[Reference, ...]:
    smooth = "250 epochs, cosine, label smoothing"
    ffcv = "{} epochs, BlurPool, progressive size"
    rows: list[tuple[int, str, float, float | None, str, float]] = [
        (18, "torchvision V1", 69.758, None, "90 epochs", 90),
        (34, "torchvision V1", 73.30, None, "90 epochs", 90),
        (50, "torchvision V1", 76.13, None, "90 epochs", 90),
        (101, "torchvision V1", 77.40, None, "90 epochs", 90),
        (152, "torchvision V1", 78.312, None, "90 epochs", 90),
        (50, "NVIDIA ConvNets, AMP", 77.12, 0.11, "90 epochs", 90),
        (50, "NVIDIA ConvNets, AMP", 78.43, 0.11, smooth, 250),
        (50, "FFCV", 73.8, None, ffcv.format(16), 16),
        (50, "FFCV", 77.2, None, ffcv.format(40), 40),
        (50, "FFCV", 78.4, None, ffcv.format(88), 88),
    ]
    return tuple(
        Reference(
            resnet(depth, variant="v1.5"), "1-crop", source, round(100 - accuracy, 3), None,
            spread, note, Recipe(epochs),
        )
        for depth, source, accuracy, spread, note, epochs in rows
    )  # fmt: skip


def _cifar() -> tuple[Reference, ...]:
    residual = [(20, 8.75), (32, 7.51), (44, 7.17), (56, 6.97), (110, 6.43), (1202, 7.93)]
    drawn = Reference(None, "1-crop", "paper, figure 6", note="drawn there, not stated")
    above = "stays above 60%"
    nets = [plain(depth, "cifar") for depth in (20, 32, 44, 56, 110)]
    return (
        *(
            Reference(
                network, "1-crop", drawn.source,
                note=above if network.depth == 110 else drawn.note,
            )
            for network in nets
        ),
        *(
            Reference(
                resnet(depth, "A", family="cifar"), "1-crop", "paper, Table 6", error,
                note="best of 5 runs; their mean is 6.61 ± 0.16" if depth == 110 else "",
            )
            for depth, error in residual
        ),
    )  # fmt: skip
