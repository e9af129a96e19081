"""Reads weights from safetensors, torchvision's state_dict or a checkpoint, and their description:
the network, the classes, the preprocessing."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.normalisation import Normalisation
from pipeline.model.network import network_facts, network_name
from pipeline.system.failure import TrainingError
from pipeline.system.files import content_of
from pipeline.train import checkpoint, foreign

_FORMAT = "1"
_VIEW = "shorter side to `resize` pixels, bilinear with antialiasing; centre square of `image_size`"

MEAN_IMAGE = "preprocessing.mean_image"
"""Name of the mean image (H, W, 3) fp32 next to the weights, where a network was trained with one.
"""


@dataclass(frozen=True)
class Description:
    """The facts needed to use a network's weights.

    `network` is how its layers are built, `resize` and `image_size` are pixels, `classes` the names
    of its outputs in order.
    """

    network: Mapping[str, Any]
    name: str
    classes: list[str]
    image_size: int
    resize: int
    normalisation: Normalisation

    @property
    def facts(self) -> dict[str, Any]:
        """The description in plain values, without a mean image."""
        normal = self.normalisation
        preprocessing = {
            "view": _VIEW,
            "image_size": self.image_size,
            "resize": self.resize,
            "pixels": "RGB, 0..255, (pixel - mean) / std, N x 3 x H x W",
            "mean": [float(value) for value in normal.mean],
            "std": [float(value) for value in normal.std],
            "color_axes": normal.color_axes.tolist(),
        }
        return {
            "trainyard": _FORMAT,
            "name": self.name,
            "network": dict(self.network),
            "preprocessing": preprocessing,
            "classes": self.classes,
        }

    def text(self) -> dict[str, str]:
        """The facts as the metadata of a file: strings, and JSON for everything else."""
        return {n: v if isinstance(v, str) else json.dumps(v) for n, v in self.facts.items()}


def describe(config: Config, classes: list[str], normalisation: Normalisation) -> Description:
    """The description of the network that these settings give."""
    model, data = config.model, config.data
    resize = data.image_size if data.dataset == "cifar-10" else data.val_resize
    size = data.view_size
    return Description(
        network_facts(model), network_name(model), classes, size, resize,
        normalisation.for_shape((size, size)),
    )  # fmt: skip


def from_facts(facts: Mapping[str, Any], image: Any | None) -> Description | None:
    """The inverse of `facts` and of `text`, with the mean `image` (H, W, 3) float32 if any.

    None where another program wrote the file. Raises `ValueError` for facts of ours that do not
    hold what they should.
    """
    if facts.get("trainyard") != _FORMAT:
        return None
    try:
        preprocessing, network, classes = (
            json.loads(facts[name]) if isinstance(facts[name], str) else facts[name]
            for name in ("preprocessing", "network", "classes")
        )
        return Description(
            network,
            facts["name"],
            classes,
            preprocessing["image_size"],
            preprocessing["resize"],
            Normalisation(
                mean=np.array(preprocessing["mean"], dtype=np.float32),
                std=np.array(preprocessing["std"], dtype=np.float32),
                image=image,
                color_axes=np.array(preprocessing["color_axes"], dtype=np.float64),
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its metadata is damaged ({type(error).__name__}: {error})") from error


_OF_TORCH = (b"PK", b"\x80")
"""How a file of torch.save begins: a ZIP archive, or from before PyTorch 1.6 a pickle."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, what the file says about them, if one of ours, and its SHA-256 in hex.

    `kind` says of a checkpoint that has two kinds of weights which these are (`said_kind`).
    """

    tensors: dict[str, Tensor]
    description: Description | None
    sha256: str
    kind: str = ""


def read_weights(path: Path) -> Weights:
    """Reads a file of safetensors, or one of torch.save with a state_dict, also one inside another
    program's checkpoint or with the prefixes of wrappers; code in it is never run.

    Raises `ValueError` if it is not whole or holds something else, `TrainingError` if it cannot be
    read.
    """
    stored = bytes_of(path, "--weights")
    with _told(path, "--weights"):
        return _safetensors_of(path, stored) or _state_dict_of(path, stored, _unpickled(stored))


def read_weights_or_checkpoint(path: Path, option: str) -> Weights:
    """As `read_weights`, and also takes a checkpoint of this program, of one with an average of the
    weights (EMA) that; errors name the `option`."""
    stored = bytes_of(path, option)
    with _told(path, option):
        if (found := _safetensors_of(path, stored)) is not None:
            return found
        content = _unpickled(stored)
        if not foreign.is_checkpoint(content):
            return _state_dict_of(path, stored, content)
    trained = checkpoint.trained(path, checkpoint.verified(path, stored))
    description = describe(trained.config, trained.classes, trained.normalisation)
    digest = hashlib.sha256(stored).hexdigest()
    return Weights(trained.weights, description, digest, trained.said_kind)


@contextmanager
def _told(path: Path, option: str) -> Iterator[None]:
    """Turns an error of the body into the sentence about the file."""
    try:
        yield
    except foreign.NotWeights as error:
        raise ValueError(f"{option} {path} cannot be used: {error}") from error
    except Exception as error:  # torch and safetensors raise many kinds on a damaged file
        reason = " ".join(str(error).split("\n")[0].split())[:200]
        raise ValueError(
            f"{option} {path} cannot be used: {reason}; copy it again from its source"
        ) from error


def bytes_of(path: Path, option: str) -> bytes:
    """The content of the file, read once: what is hashed is what is used. Raises `TrainingError`
    if it cannot be read."""
    try:
        return content_of(path, f"{option} {path}")
    except OSError as error:
        raise TrainingError(
            f"{option} {path} cannot be read: {error.strerror or error}; start again when its "
            "file system gives it"
        ) from error


def _state_dict_of(path: Path, stored: bytes, content: Any) -> Weights:
    tensors = foreign.state_dict_in(content)
    return Weights(tensors, _sidecar(path), hashlib.sha256(stored).hexdigest())


def _safetensors_of(path: Path, stored: bytes) -> Weights | None:
    """The weights in a file that is, or is called, one of safetensors; None for any other."""
    header = foreign.safetensors_header(stored)
    if header is None and path.suffix != ".safetensors":
        return None
    text = (header or {}).get("__metadata__", {})
    return _read_safetensors(stored, text, hashlib.sha256(stored).hexdigest())


def _read_safetensors(stored: bytes, text: Mapping[str, str], digest: str) -> Weights:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise foreign.NotWeights(
            "it holds safetensors, which need a package; run pip install safetensors"
        ) from error
    tensors = load(stored)
    image = tensors.pop(MEAN_IMAGE, None)
    return Weights(tensors, from_facts(text, None if image is None else image.numpy()), digest)


def _unpickled(stored: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:
        what = foreign.inside(stored)
        if what is None and not stored.startswith(_OF_TORCH):
            what = (
                "it is neither a file of torch.save nor safetensors; give a .pth, a .safetensors "
                "or a checkpoint of this program"
            )
        if what is None:
            raise
        raise foreign.NotWeights(what) from error


def _sidecar(path: Path) -> Description | None:
    """What `export` left next to a .pth; None where there is nothing, or another's."""
    sidecar = path.with_suffix(".json")
    try:
        found = json.loads(sidecar.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none, or not JSON and so another program's
        return None
    return from_facts(found, None) if isinstance(found, dict) else None


def load_into(model: nn.Module, tensors: dict[str, Tensor], network: str, path: Path) -> None:
    """Copies `tensors` into `model`. Raises `ValueError`, naming the first of each kind of
    difference, unless they are those of that network.

    Counts of batches may be missing, as in files from before PyTorch had them.
    """
    wanted = model.state_dict()
    if found := differences(tensors, wanted):
        raise ValueError(
            f"--weights {path} are not those of a {network} with {wanted['fc.bias'].numel()} "
            f"classes: {found}; set model in --config, or --classes, as they were trained"
        )
    require_finite(tensors, f"--weights {path}")
    model.load_state_dict(tensors, strict=False)


def differences(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first of each kind of difference in name and shape, in words; empty if there is none."""
    missing = [n for n in wanted if n not in tensors and not n.endswith("num_batches_tracked")]
    strange = [name for name in tensors if name not in wanted]
    shapes = [
        f"{name} is {tuple(value.shape)} and should be {tuple(wanted[name].shape)}"
        for name, value in tensors.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    return "; ".join([
        *([f"{len(missing)} tensors are missing, the first {missing[0]}"] if missing else []),
        *([f"{len(strange)} do not belong there, the first {strange[0]}"] if strange else []),
        *shapes[:1],
    ])  # fmt: skip


def require_finite(tensors: Mapping[str, Tensor], named: str) -> None:
    """Raises `ValueError` with the first of the tensors that holds infinities or NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{named} are not finite: {name}; copy it again from its source")
