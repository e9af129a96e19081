"""The errors published in the paper and later work, each with its source.

Errors in %, on the validation images of ImageNet-1k and the test images of CIFAR-10. Where a
source gives accuracies, the error is 100 minus that. Sources:

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
    """What a run must have been trained with to compare with a number; None: anything."""

    epochs: float | None = None
    global_batch_size: int | None = None
    warmup: bool | None = None


@dataclass(frozen=True)
class Reference:
    """One published number. `top1` and `top5` are errors in %, None where the source has none.

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
        Table("ImageNet, later references", "imagenet-1k", _later()),
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
    four = "paper, Table 4"
    return (
        Reference(resnet(34, "B"), "multi-scale", four, 21.84, 5.71),
        Reference(resnet(34, "C"), "multi-scale", four, 21.53, 5.60),
        Reference(resnet(50), "multi-scale", four, 20.74, 5.25),
        Reference(resnet(101), "multi-scale", four, 19.87, 4.60),
        Reference(resnet(152), "multi-scale", four, 19.38, 4.49),
        Reference(
            None, "multi-scale", "paper, Table 5", None, 3.57, ensemble=6,
            note="theirs on the test images, ours on the validation images",
        ),
    )  # fmt: skip


def _released() -> tuple[Reference, ...]:
    return (
        Reference(resnet(50), "1-crop", "released weights", 24.7, 7.8),
        Reference(resnet(101), "1-crop", "released weights", 23.6, 7.1),
        Reference(resnet(152), "1-crop", "released weights", 23.0, 6.7),
    )


def _later() -> tuple[Reference, ...]:
    """By depth: the top-1 error, its standard deviation, and what was trained."""
    goyal, fb, vision = "Goyal et al. 2017", "fb.resnet.torch", "torchvision V1"
    nvidia, ffcv = "NVIDIA ConvNets, AMP", "FFCV"
    smooth, sized = "250 epochs, cosine, label smoothing", "epochs, BlurPool, progressive size"
    ninety, usual = "90 epochs", "90 epochs, batch 256"
    warm, cold = "90 epochs, batch 8192, 5 epochs of warm-up", "90 epochs, batch 8192, no warm-up"
    rows: list[tuple[int, Protocol, str, float, float | None, str, Recipe]] = [
        (50, "1-crop", goyal, 23.60, 0.12, usual, Recipe(90, 256)),
        (50, "1-crop", goyal, 23.74, 0.09, warm, Recipe(90, 8192, True)),
        (50, "1-crop", goyal, 24.84, None, cold, Recipe(90, 8192, False)),
        (101, "1-crop", goyal, 22.08, None, usual, Recipe(90, 256)),
        (101, "1-crop", goyal, 22.36, None, warm, Recipe(90, 8192, True)),
        (18, "1-crop", fb, 30.43, None, ninety, Recipe(90)),
        (18, "10-crop", fb, 28.22, None, ninety, Recipe(90)),
        (34, "1-crop", fb, 26.73, None, ninety, Recipe(90)),
        (34, "10-crop", fb, 24.76, None, ninety, Recipe(90)),
        (50, "1-crop", fb, 24.01, None, ninety, Recipe(90)),
        (50, "10-crop", fb, 22.24, None, ninety, Recipe(90)),
        (101, "1-crop", fb, 22.44, None, ninety, Recipe(90)),
        (101, "10-crop", fb, 21.08, None, ninety, Recipe(90)),
        (152, "1-crop", fb, 22.16, None, ninety, Recipe(90)),
        (152, "10-crop", fb, 20.69, None, ninety, Recipe(90)),
        (18, "1-crop", vision, 100 - 69.758, None, ninety, Recipe(90)),
        (34, "1-crop", vision, 100 - 73.30, None, ninety, Recipe(90)),
        (50, "1-crop", vision, 100 - 76.13, None, ninety, Recipe(90)),
        (101, "1-crop", vision, 100 - 77.40, None, ninety, Recipe(90)),
        (152, "1-crop", vision, 100 - 78.312, None, ninety, Recipe(90)),
        (50, "1-crop", nvidia, 100 - 77.12, 0.11, ninety, Recipe(90)),
        (50, "1-crop", nvidia, 100 - 78.43, 0.11, smooth, Recipe(250)),
        (50, "1-crop", ffcv, 100 - 73.8, None, f"16 {sized}", Recipe(16)),
        (50, "1-crop", ffcv, 100 - 77.2, None, f"40 {sized}", Recipe(40)),
        (50, "1-crop", ffcv, 100 - 78.4, None, f"88 {sized}", Recipe(88)),
    ]
    return tuple(
        Reference(resnet(depth, variant="v1.5"), protocol, source, top1, None, spread, note, recipe)
        for depth, protocol, source, top1, spread, note, recipe in rows
    )


def _cifar() -> tuple[Reference, ...]:
    notes = dict.fromkeys((20, 32, 44, 56), "drawn there, not stated") | {110: "stays above 60%"}
    residual = [(20, 8.75), (32, 7.51), (44, 7.17), (56, 6.97), (110, 6.43), (1202, 7.93)]
    best = {110: "best of 5 runs; their mean is 6.61 ± 0.16"}
    return (
        *(
            Reference(plain(depth, "cifar"), "1-crop", "paper, figure 6", note=note)
            for depth, note in notes.items()
        ),
        *(
            Reference(
                resnet(depth, "A", family="cifar"), "1-crop", "paper, Table 6", error,
                note=best.get(depth, ""),
            )
            for depth, error in residual
        ),
    )  # fmt: skip
