"""The machine of a process: its cores, its parent, and the versions of packages and drivers."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import signal
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from pipeline.system.version import VERSION

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
"""DALI's packages, one per CUDA version."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@functools.cache
def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on besides its configuration."""
    import torch

    found = {
        "trainyard": VERSION,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
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
    if not (here.parents[1] / ".git").exists():  # git would name the project around a wheel's place
        return "unknown"
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


def keep_triton_cache_on_this_node() -> None:
    """Has Triton keep its compiled kernels in `triton_cache`."""
    os.environ["TRITON_CACHE_DIR"] = str(triton_cache())


def triton_cache() -> Path:
    """Where the ranks of a job keep Triton's compiled kernels: in TRITON_CACHE_DIR if that is set,
    else on this machine's own disk.

    Triton's default is the home directory, the last resort here: where nodes share it, ranks that
    compile a kernel at the same time see each other's half-written files (Triton's issue 2688).
    """
    if "TRITON_CACHE_DIR" in os.environ:
        return Path(os.environ["TRITON_CACHE_DIR"])
    folder = _own_temporary_folder()
    return Path.home() / ".triton" / "cache" if folder is None else folder / "triton"


def _own_temporary_folder() -> Path | None:
    """A folder of this user alone below the temporary folder, the same each time; made if need be.

    None if it cannot be made, or is not this user's alone: anybody may have made one of its name,
    and what Triton finds in its cache it runs.
    """
    folder = Path(tempfile.gettempdir()) / f"trainyard-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    # A link, which may lead to anybody's folder, has all of these bits.
    private = found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if private else None


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Lets the kernel send this process a signal when the thread that started it ends, however it
    does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
