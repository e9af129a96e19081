"""The GPUs that the driver shows to this process, and why PyTorch can use none of them.

Loads torch only to answer that question. The driver is asked by nvidia-smi; by the kernel's files
where nvidia-smi is missing or fails, as after an update of the driver without a reboot.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.system.console import counted

PROC = Path("/proc/driver/nvidia")
DEV = Path("/dev")
DRIVER_LIBRARY = "libcuda.so.1"
_ALL_HIDDEN = ("", "-1", "NoDevFiles")
"""CUDA_VISIBLE_DEVICES of somebody, or a Slurm, that wants no GPU to be used."""


class Listed(NamedTuple):
    """The GPUs that this process may open."""

    names: list[str]
    driver: str | None


class Unusable(NamedTuple):
    """Why no listed GPU can be used, and what to do about it: two parts of one sentence."""

    found: str
    cure: str


def query_gpus(*names: str) -> tuple[list[list[str]], str | None]:
    """The given properties of every GPU in nvidia-smi, a row each, and why there are none, or None;
    a machine without nvidia-smi, or without a GPU for this process, has neither."""
    if shutil.which("nvidia-smi") is None:
        return [], None
    argv = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi gave no answer ({type(error).__name__})"
    said = " ".join((done.stdout + done.stderr).split())[:200]
    if "No devices were found" in said:  # as in a job that was given none
        return [], None
    if done.returncode != 0:
        return [], f"nvidia-smi failed with code {done.returncode}: {said}"
    lines = done.stdout.strip().splitlines()
    return [[part.strip() for part in line.split(",")] for line in lines], None


def listed_gpus() -> Listed:
    """The GPUs that the driver lists to this process, whether or not CUDA can use them."""
    rows, problem = query_gpus("driver_version", "name")
    if rows:
        return Listed([",".join(row[1:]) for row in rows], rows[0][0])
    if shutil.which("nvidia-smi") is not None and problem is None:
        return Listed([], None)
    # The kernel shows a container the GPUs of its host; what counts is whether it may open one.
    if not any(os.access(device, os.R_OK | os.W_OK) for device in DEV.glob("nvidia[0-9]*")):
        return Listed([], None)
    try:
        gpus = [(gpu / "information").read_text() for gpu in sorted((PROC / "gpus").iterdir())]
        version = (PROC / "version").read_text()
    except OSError:
        return Listed([], None)
    # "Model: \t\t NVIDIA H200"; "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri"
    models = [line.partition(":")[2].strip() for text in gpus for line in text.splitlines()[:1]]
    numbers = [word for word in version.split() if word[0].isdigit() and word.count(".") >= 1]
    return Listed(models, numbers[0] if numbers else None)


def visible_gpus() -> list[str]:
    """The GPUs that the driver lists and CUDA_VISIBLE_DEVICES does not hide, as a process that is
    started now may use them; without asking PyTorch."""
    names, shown = listed_gpus().names, os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return names
    if shown in _ALL_HIDDEN:
        return []
    return names[: len(shown.split(","))] if names else []


CONTAINER = "TRAINYARD_CONTAINER"
"""Variable by which launch.slurm tells its ranks which runtime holds them."""

_CONTAINERS = (
    (("KUBERNETES_SERVICE_HOST",), "a limit of nvidia.com/gpu in the pod's resources"),
    (("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"), "--nv after apptainer exec"),
)
"""Variables that are there in one kind of container only, and what gives it GPUs."""


def container_gpus(env: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str | None:
    """What gives the container that this process runs in its GPUs; None outside of one."""
    if env.get(CONTAINER) == "pyxis":
        return "NVIDIA_VISIBLE_DEVICES=all in the job's environment, which Enroot reads"
    if env.get(CONTAINER) == "apptainer":  # by launch.slurm, which has given --nv
        return "--nv on a host whose nvidia-smi lists them, as launch.slurm has tried"
    for names, cure in _CONTAINERS:
        if any(name in env for name in names):
            return cure
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return "docker run --gpus all, or podman run --device nvidia.com/gpu=all"
    return None


def gpus_kept_out(env: Mapping[str, str] = os.environ) -> str | None:
    """What to do about a container that shows none of the GPUs that Slurm gave the job; None where
    that is not so.

    Only in a container that names itself: a whole Slurm may run in one of Docker.
    """
    named = (CONTAINER, *(name for names, _ in _CONTAINERS for name in names))
    given = env.get("SLURM_STEP_GPUS") or env.get("SLURM_JOB_GPUS")
    if not given or not any(name in env for name in named):
        return None
    if env.get("CUDA_VISIBLE_DEVICES") in _ALL_HIDDEN or listed_gpus().names:
        return None
    return container_gpus(env)


def no_gpu_here() -> str:
    """A clause on why this process sees no GPU, with what to do; no full stop."""
    host, cure = socket.gethostname(), container_gpus()
    if cure is not None:
        return f"no GPU is visible inside this container on {host} (start it with {cure})"
    return (
        f"there is no GPU on {host} that this process may use (see nvidia-smi and "
        "CUDA_VISIBLE_DEVICES)"
    )


def driver_cuda() -> str | None:
    """The newest CUDA version that the driver runs ("12.8"); None without its library."""
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
        number = ctypes.c_int()
        failed = library.cuDriverGetVersion(ctypes.byref(number))  # needs no cuInit
    except (OSError, AttributeError):
        return None
    return None if failed else f"{number.value // 1000}.{number.value % 1000 // 10}"


def usable_count() -> int:
    """The GPUs that PyTorch can use. `torch.cuda.device_count` alone also counts, by NVML, those of
    a driver that is too old for it."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def unusable_gpus() -> Unusable | None:
    """Why PyTorch cannot use any of the GPUs that the driver lists.

    None where it can, where none is listed, and where CUDA_VISIBLE_DEVICES hides all of them.
    """
    if usable_count() or os.environ.get("CUDA_VISIBLE_DEVICES") in _ALL_HIDDEN:
        return None
    listed = listed_gpus()
    if not listed.names:
        return None
    import torch

    models = ", ".join(dict.fromkeys(listed.names))
    on_cpu = "set run.device=cpu to train on the CPU"
    ours, theirs = torch.version.cuda, driver_cuda()
    found = (
        f"the driver ({listed.driver or 'unknown version'}, for CUDA {theirs or 'unknown'}) lists "
        f"{counted(len(listed.names), 'GPU')} ({models}), but PyTorch {torch.__version__} "
    )
    if ours is None:
        return Unusable(
            f"{found}is built for CPUs",
            f"install a PyTorch built for CUDA, or {on_cpu}",
        )
    found += f"for CUDA {ours} can use none of them: {_words_of_torch()}"
    if theirs is not None and int(theirs.partition(".")[0]) < int(ours.partition(".")[0]):
        cure = f"update the driver, or install a PyTorch built for CUDA {theirs} or older"
        return Unusable(found, f"{cure}, or {on_cpu}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    asked = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    return Unusable(found, f"see that the job may use them{asked}, or {on_cpu}")


def _words_of_torch() -> str:
    """The first sentence of PyTorch's own error."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return "it names no reason"
