"""Checkpoints of small untrained networks, and members of evaluations, for what reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pipeline.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.evaluate.__main__ import parse_options
from pipeline.evaluate.members import Member, make_member
from pipeline.model.resnet import build_network
from pipeline.train.checkpoint import FORMAT, Trained, write_atomically

CIFAR_8 = ModelConfig("cifar", depth=8, zero_init_last_norm=False)
RESNET_18 = ModelConfig(depth=18, zero_init_last_norm=False)
SMALL = DataConfig(image_size=32, val_resize=36, threads=1)
CLASSES = [f"n0000000{i}" for i in range(7)]


def write_checkpoint(
    path: Path,
    model: ModelConfig = CIFAR_8,
    data: DataConfig = SMALL,
    classes: Sequence[str] = CLASSES,
    normalisation: Normalisation = IMAGENET,
    amp: Literal["off", "bf16"] = "off",
    ema: bool = False,
) -> Path:
    """A checkpoint of random weights whose running statistics have moved from where they start, and
    with `ema` of an average whose last layer is another."""
    torch.manual_seed(0)
    network = build_network(model, len(classes), "reference").train()
    torch.nn.init.normal_(network.fc.weight)
    with torch.no_grad():
        network(3 * torch.rand(4, 3, 32, 32))
    config = Config(data, model, OptimConfig(amp=amp), run=RunConfig(device="cpu", threads=1))
    content = {
        "format": FORMAT,
        "fingerprint": {},
        "step": 7,
        "world_size": 1,
        "excluded": {"train": [], "val": []},
        "model": network.state_dict(),
        "classes": list(classes),
        "config": config.to_yaml(),
        "normalisation": normalisation.state(),
    }
    if ema:
        average = {name: value.clone() for name, value in network.state_dict().items()}
        average["fc.weight"] = -average["fc.weight"]
        content["ema"] = {"model": average}
    write_atomically(path, content)
    return path


def with_image(size: int) -> Normalisation:
    """Figures of no training set in particular, with a mean image."""
    generator = np.random.default_rng(0)
    return Normalisation(
        mean=np.array([100, 110, 120], dtype=np.float32),
        std=np.array([50, 60, 70], dtype=np.float32),
        image=generator.uniform(80, 130, (size, size, 3)).astype(np.float32),
        color_axes=IMAGENET.color_axes,
    )


@cache
def _given(options: tuple[str, ...]) -> Any:
    return parse_options(["--checkpoint", __file__, *options])


def made_member(
    name: str, *options: str, data: DataConfig | None = None, **content: object
) -> Member:
    """A member as its checkpoint `name` gives it; the file itself is not needed."""
    stored = Trained(
        Path(name), Config(data or DataConfig(), ModelConfig(depth=18)), ["cat", "dog"], IMAGENET,
        {"w": torch.ones(2)}, step=7, world_size=1, fingerprint={}, excluded={},
    )  # fmt: skip
    return make_member(dataclasses.replace(stored, **content), _given(options))
