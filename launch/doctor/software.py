"""Which software one node runs: versions, what Horovod was built with, which apex, which norm.

Every problem is a fact, never an exception: one broken package must not hide the others.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

_CODE = Path(__file__).resolve().parent.parent.parent
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def software_facts(
    device: Literal["auto", "cpu", "cuda"], norm: str, amp: str, gpus: int
) -> dict[str, Any]:
    """Versions (null: not there), GPUs as PyTorch and DALI see them, Horovod, apex, norm layers.

    `gpus` is how many the driver shows; DALI is only loaded when there are any. Imports torch and
    Horovod, which takes 2 to 3 s.
    """
    found: dict[str, Any] = {
        "versions": {
            "python": platform.python_version(),
            "torch": _version("torch"),
            "torch CUDA": None,
            "NCCL": None,
            "DALI": " ".join(f"{v} ({n})" for n in _DALI if (v := _version(n))) or None,
            "Horovod": _version("horovod"),
            "numpy": _version("numpy"),
            "trainyard": code_digest(_CODE),
        },
        "horovod": _horovod(),
        "apex": None,
        "norm_problems": {},
        "torch_problem": None,
        "torch_gpus": 0,
        "dali_gpus": None,
        "device": "cpu",
    }
    try:
        _ask_torch(found, device, amp)
    except Exception as error:  # whatever a broken installation or driver raises
        found["torch_problem"] = _one_line(error)
    if gpus and device != "cpu":
        found["dali_gpus"] = _dali_gpus()
    return found


def code_digest(root: Path) -> str:
    """12 hex digits that differ when any Python file of `pipeline/` or `launch/` does."""
    sha = hashlib.sha256()
    for folder in ("launch", "pipeline"):
        for path in sorted((root / folder).rglob("*.py")):
            sha.update(b"%s\0%s\0" % (os.fsencode(path.relative_to(root)), path.read_bytes()))
    return sha.hexdigest()[:12]


def _ask_torch(found: dict[str, Any], device: str, amp: str) -> None:
    import torch

    from pipeline.model.backends import Amp, problems

    found["versions"]["torch CUDA"] = torch.version.cuda
    if torch.version.cuda is not None:
        found["versions"]["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        found["torch_gpus"] = torch.cuda.device_count()
    found["device"] = "cuda" if device != "cpu" and found["torch_gpus"] else "cpu"
    found["apex"] = apex_identity()
    on = torch.device("cuda", 0) if found["device"] == "cuda" else torch.device("cpu")
    found["norm_problems"] = problems(on, cast(Amp, amp))


def apex_identity() -> str:
    """Whose package answers to the name apex here, and whether it can normalise."""
    from pipeline.model.backends import missing_package

    found = importlib.util.find_spec("apex")
    if found is None:
        return "none"
    if missing_package("apex") is None:
        return "NVIDIA's with bnp"
    folders = [Path(place) for place in found.submodule_search_locations or []]
    ours = any((folder / "contrib").is_dir() for folder in folders)
    return "NVIDIA's without bnp" if ours else "the unrelated one"


def _horovod() -> dict[str, Any]:
    """What Horovod was built with; `problem` says why it cannot be used, or is null."""
    try:
        import horovod.torch as hvd
    except Exception as error:  # not there, or built for another torch
        return {"problem": _one_line(error), "nccl": False, "gloo": False}
    return {"problem": None, "nccl": bool(hvd.nccl_built()), "gloo": bool(hvd.gloo_built())}


def _dali_gpus() -> int | None:
    """GPUs that DALI can use: 0 where the driver is too old for its CUDA; None without DALI."""
    try:
        from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined]

        return int(GetCUDADeviceCount())
    except Exception:  # the check of the versions says that DALI is not there
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
