"""Exports a network as ONNX, checked against PyTorch before the file takes its place."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.system.files import replacing
from pipeline.train.weights import Description

TOLERANCE = 1e-4
"""The largest difference allowed between a logit of onnxruntime and of PyTorch, as share of the
largest logit; sums in another order give about 1e-6."""

_OPSET = 18
_CHECKED = 3  # images; not the number that the graph is traced with


@dataclass(frozen=True)
class Agreement:
    """The agreement of onnxruntime and PyTorch: the largest difference and the largest logit."""

    difference: float
    largest: float

    @property
    def holds(self) -> bool:
        """Whether the file can be trusted; never if a number is not finite."""
        return self.difference <= TOLERANCE * self.largest

    def __str__(self) -> str:
        """Name the figures."""
        return (
            f"largest difference between onnxruntime and PyTorch {self.difference:.2g}, of logits "
            f"up to {self.largest:.3g}; allowed {TOLERANCE * self.largest:.2g}"
        )


class WithMeanImage(nn.Module):
    """A network trained with a mean image, adapted to images with the channel means subtracted,
    which is all that other programs can do."""

    shift: Tensor

    def __init__(self, model: nn.Module, description: Description) -> None:
        super().__init__()
        normal = description.normalisation
        assert normal.image is not None, "a network without a mean image"
        shift = ((normal.mean - normal.image) / normal.std).transpose(2, 0, 1)
        self.model = model
        self.register_buffer("shift", torch.from_numpy(np.ascontiguousarray(shift)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) of the mean image's height and width -> logits (N, classes)."""
        return self.model(images + self.shift)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def write_onnx(path: Path, model: nn.Module, description: Description) -> Agreement:
    """Writes input "images" (N, 3, image_size, image_size) fp32 -> "logits" (N, classes) for any N.

    `model` is on the CPU, in evaluation mode; the description is the file's metadata. Raises
    `ValueError` if onnxruntime and PyTorch disagree; then no file is written.
    """
    size = description.image_size
    if description.normalisation.image is not None:
        model = WithMeanImage(model, description).eval()
    with replacing(path) as partial:
        _export(partial, model, torch.zeros(2, 3, size, size))
        _add_metadata(partial, description)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(_CHECKED, 3, size, size, generator=generator)
        agreement = _compare(partial, model, images)
        if not agreement.holds:
            raise ValueError(
                f"{path} is not written, {agreement}; export to .safetensors, and report this "
                "with the versions of torch, onnxscript and onnxruntime"
            )
    return agreement


def _compare(path: Path, model: nn.Module, images: Tensor) -> Agreement:
    """Runs the file with onnxruntime and `model` with PyTorch on `images`, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"images": images.numpy()})[0]
    with torch.no_grad():
        wanted = model(images.contiguous(memory_format=torch.channels_last)).numpy()
    return Agreement(float(np.abs(found - wanted).max()), float(np.abs(wanted).max()))


def _export(path: Path, model: nn.Module, example: Tensor) -> None:
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's messages about its own dependencies
            torch.onnx.export(
                model, (example,), str(path), dynamo=True, verbose=False, external_data=False,
                input_names=["images"], output_names=["logits"], opset_version=_OPSET,
                dynamic_shapes=({0: torch.export.Dim("images")},),
            )  # fmt: skip
    finally:
        exporter.setLevel(level)


def _add_metadata(path: Path, description: Description) -> None:
    import onnx

    written = onnx.load(str(path))
    onnx.helper.set_model_props(written, description.text())
    onnx.checker.check_model(written)
    onnx.save(written, str(path))
