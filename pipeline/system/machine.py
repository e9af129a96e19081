"""The machine of a process: its cores, its parent, and the versions of packages and drivers."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import signal
import subprocess
from importlib import metadata
from pathlib import Path

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
"""DALI's packages, one per CUDA version."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@functools.cache
def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on besides its configuration."""
    import torch

    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    packages = {name: version_of(name) for name in ("horovod", *DALI, "numpy")}
    found |= {name: version for name, version in packages.items() if version is not None}
    return found | {"commit": _commit()}


def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


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


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def end_with_parent() -> None:
    """Lets the kernel kill this process when the thread that started it ends, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
