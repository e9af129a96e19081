"""Backends of the norm layers: PyTorch's operators, our Triton kernels, or NVIDIA's apex.

All three compute the same layer, `pipeline.model.norm`, from the same state_dict. This module makes
layers with the requested one, or says before a run begins why it cannot.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from pipeline.model.kernels.layer import ApexNorm, interpreting
from pipeline.model.norm import BatchNormAct

Backend = Literal["reference", "triton", "apex"]
Choice = Literal["auto", "reference", "triton", "apex"]
Amp = Literal["off", "tf32", "bf16", "fp16"]

log = logging.getLogger("trainyard")


def choose_backend(choice: Choice, device: torch.device, amp: Amp) -> Backend:
    """The backend for a network on `device`; logs what "auto" chose.

    "auto" takes Triton on a GPU where it works, and else the reference; never apex, whose gradient
    of ReLU at 0 differs.

    Args:
        choice: the setting model.norm.
        device: where the network will lie; for apex it must be the current CUDA device already.
        amp: the setting optim.amp.

    Raises:
        ValueError: the backend that was asked for cannot run here.
    """
    if choice == "auto":
        on_gpu = device.type == "cuda"
        problem = problem_of("triton", device, amp) if on_gpu else "there is no GPU in use"
        chosen: Backend = "reference" if problem else "triton"
        log.info("norm layers: %s%s", chosen, f" ({problem})" if problem else "")
        return chosen
    problem = problem_of(choice, device, amp)
    if problem:
        raise ValueError(f"model.norm={choice} cannot run here: {problem}; or set model.norm=auto")
    return choice


def make_norm(backend: Backend, channels: int, relu: bool = True, **settings: Any) -> BatchNormAct:
    """A norm layer computed by `backend`; the other arguments are those of `BatchNormAct`.

    "reference" runs anywhere, "triton" where its kernels do, "apex" within the limits of
    `ApexNorm`; `choose_backend` finds one that runs. Raises `ValueError` if the backend is not
    installed, or cannot compute this layer.
    """
    missing = missing_package(backend)
    if missing:
        raise ValueError(f"the norm backend {backend} cannot run here: {missing}")
    norm = BatchNormAct(channels, relu, **settings)
    if backend == "triton":
        from pipeline.model.kernels.fused import with_triton  # imports Triton

        norm.compute = with_triton
    elif backend == "apex":
        norm.compute = ApexNorm(norm)
    return norm


def problems(device: torch.device, amp: Amp) -> dict[Backend, str | None]:
    """Why each backend cannot run on `device` and what to do about it, or None if it can."""
    return {backend: problem_of(backend, device, amp) for backend in get_args(Backend)}


def problem_of(backend: Backend, device: torch.device, amp: Amp) -> str | None:
    """Why `backend` cannot run on `device` and what to do about it, or None if it can."""
    missing = missing_package(backend)
    if missing or backend == "reference":
        return missing
    return _triton_problem(device) if backend == "triton" else _apex_problem(device, amp)


def _triton_problem(device: torch.device) -> str | None:
    """Compiles and runs our kernels once."""
    if device.type != "cuda" and not interpreting():
        return (
            f"its kernels need an NVIDIA GPU and the device is {device.type}, set run.device=cuda "
            "(TRITON_INTERPRET=1 in the environment interprets them on a CPU, for tests)"
        )
    if device.type == "cuda" and interpreting():
        return "TRITON_INTERPRET=1 keeps its kernels off the GPU, unset it"
    try:
        x = torch.randn(2, 16, 4, 4, device=device, requires_grad=True)
        make_norm("triton", 16).to(device)(x).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # a missing driver, C compiler or architecture
        reason = str(error).strip().split("\n")[0]
        return f"its first kernel failed with {type(error).__name__}: {reason}"
    return None


def _apex_problem(device: torch.device, amp: Amp) -> str | None:
    if amp != "fp16":
        return f"it computes in fp16 only and optim.amp is {amp}, set optim.amp=fp16"
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU and the device is {device.type}, set run.device=cuda"
    if torch.device("cuda", torch.cuda.current_device()) != device:
        return (
            f"it takes memory on the current GPU, {torch.cuda.current_device()}, and the device is "
            f"{device}, call torch.cuda.set_device first"
        )
    return None


def missing_package(backend: Backend) -> str | None:
    """What must be installed before `backend` can be built, or None."""
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed, run pip install triton"
    return apex_package()[1] if backend == "apex" else None


def apex_package() -> tuple[str, str | None]:
    """Which package named apex is installed, and what must be done to normalise with it, or
    None."""
    build = (
        "build it from https://github.com/NVIDIA/apex with APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
        "APEX_BNP=1"
    )
    found = importlib.util.find_spec("apex")
    if found is None:
        return "none", f"NVIDIA's apex is not installed, {build}"
    # PyPI's package of that name is a toolkit for web pages, and importing it may well fail.
    folders = [Path(place) for place in found.submodule_search_locations or []]
    if not any((folder / "contrib").is_dir() for folder in folders):
        where = ", ".join(map(str, folders)) or str(found.origin)
        return "the unrelated one", (
            f"the package apex in {where} is not NVIDIA's but the unrelated one of that name on "
            "PyPI, uninstall it and build NVIDIA's from source with its bnp extension"
        )
    try:
        importlib.import_module("apex.contrib.groupbn.batch_norm")
    except (ImportError, OSError) as error:
        return "NVIDIA's without bnp", f"apex is without its bnp extension ({error}), {build}"
    return "NVIDIA's with bnp", None
