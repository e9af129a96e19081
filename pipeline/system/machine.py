"""The machine of a process: its cores, and the versions of packages and drivers."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
"""DALI's packages, one per CUDA version."""


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
