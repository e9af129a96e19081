"""What one node is, as plain facts: GPUs, disks, data, clock, network and limits.

Nothing here judges; `launch.doctor.judge` does, over the facts of all nodes. A problem met on the
way is a fact too, so that one missing thing does not hide the others.
"""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from launch.doctor.network import network_facts
from launch.doctor.software import software_facts
from pipeline.config import DataConfig

Facts = dict[str, Any]

# The launcher writes a token into the run directory; a node that sees the file shares the folder.
TOKEN_VARIABLE = "TRAINYARD_TOKEN"
# A file made on another node may take a moment to show on a network file system.
_TOKEN_PATIENCE_SEC = 3.0
_NOTHING: Facts = {"problem": None, "cure": "", "classes": 0, "images": None, "digest": None}
_QUERY = "index,name,uuid,memory.total,memory.used,driver_version"


def facts(
    run_dir: Path | None,
    data: DataConfig | None,
    device: Literal["auto", "cpu", "cuda"],
    norm: str,
    amp: str,
) -> Facts:
    """What this node is: a dictionary that JSON can hold, sizes in bytes, times in seconds.

    `run_dir` and `data` are those of the run, None to leave them out; the others are the settings
    run.device, model.norm and optim.amp. Takes 2 to 5 s, and changes
    nothing: one temporary file comes and goes in the run directory.
    """
    started_sec, clock_sec = time.monotonic(), time.time()
    gpus, driver, gpu_problem = read_gpus()
    host = socket.gethostname()
    found: Facts = {
        "node": os.environ.get("SLURMD_NODENAME") or host,
        "host": host,
        "asked": {"device": device, "norm": norm, "amp": amp},
        "clock_sec": clock_sec,
        "driver": driver,
        "gpus": gpus,
        "gpu_problem": gpu_problem,
        "run_dir": None if run_dir is None else _run_dir_facts(run_dir),
        "data": None if data is None else _data_facts(data),
        "shm": _space(Path("/dev/shm")),
        "limits": {
            "open_files": _limit(resource.RLIMIT_NOFILE),
            "locked_bytes": _limit(resource.RLIMIT_MEMLOCK),
        },
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
    }
    found |= network_facts() | software_facts(device, norm, amp, len(gpus))
    return found | {"took_sec": round(time.monotonic() - started_sec, 2)}


def write_token(run_dir: Path) -> str:
    """Leaves a mark in the run directory `run_dir`, which must exist, and returns it.

    Put it into the nodes' environment as `TOKEN_VARIABLE`; call `remove_token` when all have
    answered. Its name is new each time, as file servers' clients remember missing files by name.
    """
    token = secrets.token_hex(8)
    _token_path(run_dir, token).touch()
    return token


def remove_token(run_dir: Path, token: str) -> None:
    """Takes the mark of `write_token` away."""
    _token_path(run_dir, token).unlink(missing_ok=True)


def read_gpus() -> tuple[list[dict[str, Any]], str | None, str | None]:
    """The GPUs that nvidia-smi shows, the driver's version, and why there are none or None.

    A machine without nvidia-smi has no GPUs, no driver and no problem.
    """
    if shutil.which("nvidia-smi") is None:
        return [], None, None
    argv = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=8)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], None, f"nvidia-smi gave no answer ({type(error).__name__})"
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())[:200]
        return [], None, f"nvidia-smi failed with code {done.returncode}: {said}"
    try:
        return *parse_gpus(done.stdout), None
    except ValueError:
        said = " ".join(done.stdout.split())[:200]
        return [], None, f"what nvidia-smi says cannot be read: {said}"


def parse_gpus(text: str) -> tuple[list[dict[str, Any]], str | None]:
    """GPUs and driver version from nvidia-smi's lines of comma-separated values."""
    gpus, driver = [], None
    for line in text.strip().splitlines():
        index, name, uuid, total, used, driver = (part.strip() for part in line.split(","))
        gpus.append(
            {"index": int(index), "name": name, "uuid": uuid}
            | {"memory_bytes": _mebibytes(total), "used_bytes": _mebibytes(used)}
        )
    return gpus, driver


def _mebibytes(text: str) -> int | None:
    # "[N/A]" where GPU and host share their memory, and on a GPU cut into MIG slices.
    return int(text) << 20 if text.isdigit() else None


def _token_path(run_dir: Path, token: str) -> Path:
    return run_dir / f".doctor-{token}"


def _run_dir_facts(run_dir: Path) -> Facts:
    """A run directory that does not exist yet is judged by the folder it will be made in."""
    place = run_dir.absolute()
    # os.path.exists, as Path.exists raises for a folder that must not be looked into.
    while not os.path.exists(place):
        place = place.parent
    token = os.environ.get(TOKEN_VARIABLE)
    found = {"path": str(run_dir), "exists": place == run_dir.absolute(), "problem": None}
    found |= {"sees_token": _sees_token(run_dir, token) if token else None}
    found |= {"file_system": _file_system(place), "clock_offset_sec": None} | _space(place)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            now = time.time()
            offset = os.stat(file.name).st_mtime - now
            found["clock_offset_sec"] = round(offset, 3)
    except OSError as error:
        found["problem"] = f"{place} cannot be written ({error.strerror})"
    return found


def _sees_token(run_dir: Path, token: str) -> bool:
    end = time.monotonic() + _TOKEN_PATIENCE_SEC
    while not (seen := os.path.exists(_token_path(run_dir, token))) and time.monotonic() < end:
        time.sleep(0.1)
    return seen


def _file_system(place: Path) -> str:
    """Type and source of the file system that holds `place`, as `nfs4 server:/home`."""
    best, named = "", "unknown"
    real = str(place.resolve())
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return named
    for line in lines:
        source, where, kind = line.split(" ")[:3]
        where = where.encode().decode("unicode_escape")  # spaces stand there as \040
        inside = real == where or real.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):
            best, named = where, f"{kind} {source}"
    return named


def _data_facts(config: DataConfig) -> Facts:
    from pipeline.data.index.arrow_file import cache_places

    root = Path(config.root)
    if config.dataset == "cifar-10":
        return {"path": str(root)} | _archive_facts(root, config.held_out) | {"cache": None}
    cache_dir = None if config.cache_dir is None else Path(config.cache_dir)
    cache = cache_places(root, "train", cache_dir)[0].parent
    while not os.path.exists(cache):
        cache = cache.parent
    return {
        "path": str(root),
        "train": _split_facts(root, "train", cache_dir),
        "val": _split_facts(root, "val", cache_dir),
        "cache": {"path": str(cache)} | _space(cache),
    }


def _archive_facts(root: Path, held_out: int | None) -> Facts:
    """The two splits of CIFAR-10's archive, which is read as a job would read it."""
    from pipeline.data.cifar import open_cifar

    try:
        splits = open_cifar(root, held_out)
    except (OSError, ValueError) as error:
        problem, _, cure = str(error).partition("; ")
        return dict.fromkeys(("train", "val"), _NOTHING | {"problem": problem, "cure": cure})
    return {
        images.split: _NOTHING
        | {"classes": len(images.classes), "images": len(images), "digest": images.digest}
        for images in splits
    }


def _split_facts(root: Path, split: Literal["train", "val"], cache_dir: Path | None) -> Facts:
    """Class folders and, where a manifest is up to date, the data hash. Never reads the images.

    Containers have no class folders and count 0.
    """
    from pipeline.data.index.manifest import cached_manifest
    from pipeline.data.index.survey import survey

    try:
        classes = len(survey(root, split).classes)
        manifest = cached_manifest(root, split, cache_dir)
    except (OSError, ValueError) as error:
        problem, _, cure = str(error).partition("; ")
        return _NOTHING | {"problem": problem, "cure": cure}
    if manifest is None:
        return _NOTHING | {"classes": classes}
    known = {"images": len(manifest), "digest": manifest.digest}
    return _NOTHING | {"classes": classes} | known


def _space(place: Path) -> Facts:
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return {"total_bytes": None, "free_bytes": None}
    return {"total_bytes": usage.total, "free_bytes": usage.free}


def _limit(which: int) -> int | None:
    """The soft limit, None for unlimited."""
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft
