"""What this rank runs on: device, decoder, threads, and the versions of everything."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch


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


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))
