"""Writes weights as safetensors and torchvision's state_dict, with their description: the network,
the classes, the preprocessing. `pipeline.train.weights` reads both."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.model.network import network_name, shortcut_of
from pipeline.system.files import replacing, write_text
from pipeline.train.weights import MEAN_IMAGE, Description


def write_safetensors(path: Path, model: nn.Module, description: Description) -> None:
    """Writes row-major tensors by name; the description is the file's metadata."""
    from safetensors.torch import save

    tensors = _row_major(model)
    image = description.normalisation.image
    if image is not None:
        tensors[MEAN_IMAGE] = torch.from_numpy(image.copy())
    with replacing(path) as partial:
        # save_file would make a file that only its owner can read.
        partial.write_bytes(save(tensors, description.text()))


def write_torchvision(
    path: Path, model: nn.Module, config: Config, description: Description
) -> Path:
    """Writes what `torchvision.models.resnet50(...).load_state_dict` takes, and JSON next to it.

    Returns the path of the JSON, which holds the description: a state_dict has no room for it.
    Raises `ValueError` for a network or a preprocessing that torchvision does not have.
    """
    _require_torchvisions(config, description)
    sidecar = path.with_suffix(".json")
    with replacing(path) as partial:
        torch.save(_row_major(model), partial)
    write_text(sidecar, json.dumps(description.facts, indent=1) + "\n")
    return sidecar


def _require_torchvisions(config: Config, description: Description) -> None:
    model, fix = config.model, "export to .safetensors or .onnx"
    theirs = model.family == "imagenet" and shortcut_of(model) == "B"
    if not theirs or (model.variant != "v1.5" and model.depth >= 50):
        raise ValueError(
            f"torchvision has no {network_name(model)}, only ResNets for ImageNet with shortcut B, "
            f"those of bottlenecks as v1.5; {fix}"
        )
    if description.normalisation.image is not None:
        raise ValueError(
            "torchvision subtracts a mean for each channel and this network was trained with a "
            f"mean image (data.mean=pixel); {fix}"
        )


def _row_major(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in model.state_dict().items()}
