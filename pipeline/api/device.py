"""The device that a caller in Python asks for."""

from __future__ import annotations

from typing import Literal

import torch

from pipeline.config import ConfigError, require
from pipeline.ranks.places import Share, choose_device
from pipeline.system.gpus import usable_count

Device = str | torch.device
"""auto, cpu, cuda, or a device of PyTorch's or its name, as "cuda:1"."""

_Choice = Literal["auto", "cpu", "cuda"]
_CHOICES: tuple[_Choice, ...] = ("auto", "cpu", "cuda")


def device_of(asked_for: Device, share: Share) -> torch.device:
    """The device that is asked for. Raises `ConfigError` for one that is not there, or of another
    kind."""
    for choice in _CHOICES:
        if asked_for == choice:
            return _chosen(choice, share.gpu)
    try:
        device = torch.device(asked_for)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device={asked_for!r} must be auto, cpu, cuda or a torch.device of these"
        ) from error
    require(
        device.type in ("cpu", "cuda"), f"device={device} must be a CPU or a GPU of CUDA; set auto"
    )
    if device.type == "cpu":
        return torch.device("cpu")
    index = share.gpu if device.index is None else device.index
    count = usable_count()
    require(
        index < count,
        f"device={device} is not there: PyTorch can use {count} GPUs; set device=auto",
    )
    return torch.device("cuda", index)


def _chosen(choice: _Choice, gpu: int) -> torch.device:
    """As `choose_device`, whose setting is an argument here."""
    try:
        return choose_device(choice, gpu)
    except ValueError as error:
        raise ConfigError(str(error).replace("run.device", "device")) from None
