"""What this rank runs on: device, decoder, threads, and the versions of everything."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from pipeline.config import Config
from pipeline.data.dali import DecodeSettings, available_cores, gpu_count
from pipeline.distributed import World


def choose_device(choice: Literal["auto", "cpu", "cuda"], local_rank: int) -> torch.device:
    """This rank's device; the one place that picks it. Raises `ValueError` if it is not there."""
    count = torch.cuda.device_count()
    if choice == "cpu" or (choice == "auto" and count == 0):
        return torch.device("cpu")
    if local_rank >= count:
        raise ValueError(
            f"local rank {local_rank} has no GPU of its own: this machine shows {count}; start at "
            "most that many ranks here, or set run.device=cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def choose_decoding(config: Config, device: torch.device, world: World) -> DecodeSettings:
    """Where and how this rank decodes. Raises `ValueError` for a GPU decoder without a GPU."""
    choice = config.data.decode
    if choice == "gpu" and (device.type != "cuda" or gpu_count() == 0):
        raise ValueError(
            "data.decode=gpu needs an NVIDIA GPU that run.device uses; set data.decode=cpu or auto"
        )
    decoder: Literal["cpu", "gpu"] = "gpu" if device.type == "cuda" and gpu_count() else "cpu"
    if choice != "auto":
        decoder = choice
    threads = config.data.threads or cpu_share(world)
    return DecodeSettings(decoder, device, threads, config.data.prefetch_batches)


def cpu_share(world: World) -> int:
    """Threads a rank may use when none are set: its part of the cores of this machine."""
    return max(1, available_cores() // world.local_size)


def set_threads(config: Config, world: World) -> None:
    """PyTorch's threads of this rank. CPU results have the same bits at the same count only."""
    torch.set_num_threads(config.run.threads or cpu_share(world))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


@functools.cache
def versions() -> dict[str, str]:
    """What the numbers of a run depend on besides its configuration."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("horovod", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"commit": _commit()}


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
