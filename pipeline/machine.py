"""What this rank runs on: device, decoder, threads, and the versions of everything."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.config import Config, DataConfig
from pipeline.data.dali import DecoderMemory, DecodeSettings, gpu_count
from pipeline.data.image_set import ImageSet
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.distributed import World

_GPU_DECODER_THREADS = 8  # published configurations have 6 to 8 for each GPU


@dataclass(frozen=True)
class Place:
    """Where a rank runs, as it sees it."""

    host: str
    cores: tuple[int, ...]
    """Numbers of the cores this process may run on."""
    gpus: tuple[str, ...]
    """UUIDs of the GPUs it can use, by CUDA's index."""


@dataclass(frozen=True)
class Share:
    """What a rank has to itself of the machine it runs on."""

    cores: int
    """How many cores, at least 1."""
    gpu: int
    """CUDA's index of its GPU; beyond the last one if there are fewer GPUs than ranks."""


def own_share(world: World) -> Share:
    """Collective. This rank's cores and GPU."""
    gpus = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    place = Place(
        socket.gethostname(),
        tuple(sorted(os.sched_getaffinity(0))),
        tuple(str(properties.uuid) for properties in gpus),
    )
    return share_of(world.gather_objects(place), world.rank)


def share_of(places: Sequence[Place], rank: int) -> Share:
    """The share of `rank`, from where every rank runs.

    Some launchers show every rank of a node all its cores and GPUs (horovodrun, Slurm's
    --gpus-per-node), others each rank its own (--cpus-per-task, --gpus-per-task). Ranks that see
    the very same ones divide them in the order of their ranks.
    """
    mine = places[rank]
    on_same_cores = sum((p.host, p.cores) == (mine.host, mine.cores) for p in places)
    on_same_gpus = [r for r, p in enumerate(places) if p.gpus == mine.gpus and p.host == mine.host]
    return Share(max(1, len(mine.cores) // on_same_cores), on_same_gpus.index(rank))


def choose_device(choice: Literal["auto", "cpu", "cuda"], gpu: int) -> torch.device:
    """This rank's device, `gpu` being CUDA's index of its GPU if it has one.

    Raises `ValueError` if there is no such GPU.
    """
    count = torch.cuda.device_count()
    if choice == "cpu" or (choice == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise ValueError(
            f"run.device=cuda, but PyTorch sees no GPU on {socket.gethostname()}; set "
            "run.device=auto or cpu, or install a PyTorch built for CUDA (see nvidia-smi)"
        )
    if gpu >= count:
        raise ValueError(
            f"{gpu + 1} or more ranks share {count} GPUs on {socket.gethostname()}; start one rank "
            "for each GPU, or set run.device=cpu"
        )
    device = torch.device("cuda", gpu)
    torch.cuda.set_device(device)
    return device


def choose_decoding(
    config: Config,
    device: torch.device,
    share: Share,
    data: Sequence[ImageSet] = (),
    normalisation: Normalisation = IMAGENET,
) -> DecodeSettings:
    """Where and how this rank decodes and normalises the images of `data`.

    Raises `ValueError` for a GPU decoder without a GPU.
    """
    settings = config.data
    choice = settings.decode
    if choice == "gpu" and (device.type != "cuda" or gpu_count() == 0):
        raise ValueError(
            "data.decode=gpu needs an NVIDIA GPU that run.device uses; set data.decode=cpu or auto"
        )
    decoder: Literal["cpu", "gpu", "none"] = (
        "gpu" if device.type == "cuda" and gpu_count() else "cpu"
    )
    if choice != "auto":
        decoder = choice
    if settings.dataset == "cifar-10":
        decoder = "none"  # its images are pixels
    on_gpu = decoder == "gpu"
    return DecodeSettings(
        decoder,
        device,
        settings.threads or (min(share.cores, _GPU_DECODER_THREADS) if on_gpu else share.cores),
        settings.prefetch_batches or (3 if on_gpu else 2),
        settings.output,
        settings.hw_decoder_load,
        decoder_memory(settings, data),
        normalisation,
    )


def decoder_memory(config: DataConfig, data: Sequence[ImageSet]) -> DecoderMemory:
    """What GPU decoders set aside for the images of `data`, or as `config` says.

    The padding is 6 bytes on the device and 4 on the host for each pixel of the largest image, room
    for its three colours and a copy in work; an assumption, not yet measured on a GPU. Less than
    DALI's own defaults is never chosen.
    """
    width = max((int(one.widths.max(initial=0)) for one in data), default=0)
    height = max((int(one.heights.max(initial=0)) for one in data), default=0)
    pixels = max(
        (int((one.widths.astype(np.int64) * one.heights).max(initial=0)) for one in data),
        default=0,
    )
    if config.preallocate is not None:
        width, height = config.preallocate
        pixels = width * height
    least = DecoderMemory()
    device, host = config.device_padding_bytes, config.host_padding_bytes
    return DecoderMemory(
        width,
        height,
        max(least.device_padding_bytes, 6 * pixels) if device is None else device,
        max(least.host_padding_bytes, 4 * pixels) if host is None else host,
    )


def set_threads(config: Config, share: Share) -> None:
    """PyTorch's threads of this rank. CPU results have the same bits at the same count only."""
    torch.set_num_threads(config.run.threads or share.cores)
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
