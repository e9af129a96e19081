"""Weights from a file of torchvision's state_dict or of safetensors, and what is known of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.weights.description import Description, from_text
from pipeline.weights.writing import MEAN_IMAGE


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what the file says about them, if one of ours."""

    tensors: dict[str, Tensor]
    description: Description | None


def read_weights(path: Path) -> Weights:
    """Reads a .pth or .safetensors file; code in it is never run.

    Raises `ValueError` if it is not whole or holds something else.
    """
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    except Exception as error:  # torch and safetensors raise many kinds on a damaged file
        reason = " ".join(str(error).split("\n")[0].split())[:200]
        raise ValueError(
            f"--weights {path} cannot be used: {reason}; copy it anew from its source"
        ) from error


def _read_safetensors(path: Path) -> Weights:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = file.metadata() or {}
    image = tensors.pop(MEAN_IMAGE, None)
    return Weights(tensors, from_text(text, None if image is None else image.numpy()))


def _read_pickled(path: Path) -> Weights:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not tensors by name")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise ValueError(f"it holds {', '.join(others[:5]) or 'nothing'}, not tensors by name")
    return Weights(dict(content), _description_beside(path))


def _description_beside(path: Path) -> Description | None:
    """What `writing` left beside a .pth of ours; None where there is nothing, or another's file."""
    beside = path.with_suffix(".json")
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none, or not JSON and so another program's
        return None
    if not isinstance(found, dict):
        return None
    text = {n: v if isinstance(v, str) else json.dumps(v) for n, v in found.items()}
    return from_text(text, None)


def load_into(model: nn.Module, tensors: dict[str, Tensor], network: str, path: Path) -> None:
    """Copies `tensors` into `model`. Raises `ValueError`, naming the first of each kind of
    difference, unless they are those of that network.

    Counts of batches may lack, as they do in files from before PyTorch had them.
    """
    wanted = model.state_dict()
    lacking = [n for n in wanted if n not in tensors and not n.endswith("num_batches_tracked")]
    foreign = [name for name in tensors if name not in wanted]
    shapes = [
        f"{name} is {tuple(value.shape)} and should be {tuple(wanted[name].shape)}"
        for name, value in tensors.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    differences = [
        *([f"{len(lacking)} tensors lack, the first {lacking[0]}"] if lacking else []),
        *([f"{len(foreign)} do not belong there, the first {foreign[0]}"] if foreign else []),
        *shapes[:1],
    ]
    if differences:
        raise ValueError(
            f"--weights {path} are not those of a {network} with {wanted['fc.bias'].numel()} "
            f"classes: {'; '.join(differences)}; set model in --config, or --classes, as they were "
            "trained"
        )
    bad = [n for n, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise ValueError(f"--weights {path} are not finite: {bad[0]}; copy it anew from its source")
    model.load_state_dict(tensors, strict=False)
