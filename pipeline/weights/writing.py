"""A checkpoint's network as a file of safetensors, or of torchvision's state_dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.model.network import build_network, network_name, shortcut_of
from pipeline.options import overrides
from pipeline.weights.description import Description, describe, stored_normalisation
from pipeline.weights.files import replaced

MEAN_IMAGE = "preprocessing.mean_image"
"""Name of the mean image (H, W, 3) fp32 beside the weights, where a network was trained with one.
"""


def load_network(content: Mapping[str, Any]) -> tuple[nn.Module, Config, Description]:
    """The network of a checkpoint on the CPU, in evaluation mode and fp32, with its settings.

    `content` is what `checkpoint.read_verified` gives.
    """
    config = overrides({}, (), yaml.safe_load(content["config"]))
    classes = list(content["classes"])
    model = build_network(config.model, len(classes), "reference")
    model.load_state_dict(content["model"])
    normalisation = stored_normalisation(content)
    return model.eval(), config, describe(config.model, config.data, classes, normalisation)


def write_safetensors(path: Path, model: nn.Module, description: Description) -> None:
    """Row-major tensors by name; the description is the file's metadata."""
    from safetensors.torch import save

    tensors = _row_major(model)
    image = description.normalisation.image
    if image is not None:
        tensors[MEAN_IMAGE] = torch.from_numpy(image.copy())
    with replaced(path) as partial:
        # save_file would make a file that its owner alone can read.
        partial.write_bytes(save(tensors, description.text()))


def write_torchvision(
    path: Path, model: nn.Module, config: Config, description: Description
) -> Path:
    """What `torchvision.models.resnet50(...).load_state_dict` takes, and JSON beside it.

    Returns the path of the JSON, which holds the description: a state_dict has no room for it.
    Raises `ValueError` for a network or a preprocessing that torchvision does not have.
    """
    _require_torchvisions(config, description)
    beside = path.with_suffix(".json")
    with replaced(path) as partial:
        torch.save(_row_major(model), partial)
    text = {
        name: value if name in ("name", "trainyard") else json.loads(value)
        for name, value in description.text().items()
    }
    with replaced(beside) as partial:
        partial.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    return beside


def _require_torchvisions(config: Config, description: Description) -> None:
    model, cure = config.model, "export to .safetensors or .onnx"
    theirs = model.family == "imagenet" and shortcut_of(model) == "B"
    if not theirs or (model.variant != "v1.5" and model.depth >= 50):
        raise ValueError(
            f"torchvision has no {network_name(model)}, only ResNets for ImageNet with shortcut B, "
            f"those of bottlenecks as v1.5; {cure}"
        )
    if description.normalisation.image is not None:
        raise ValueError(
            "torchvision subtracts a mean for each channel and this network was trained with a "
            f"mean image (data.mean=pixel); {cure}"
        )


def _row_major(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in model.state_dict().items()}
