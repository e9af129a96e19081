"""What nodes share: the run directory, its space and clock, and the data."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from launch.doctor.check import Check, Facts, Job, size
from pipeline.config import DataConfig

# The launcher writes a token into the run directory; a node that sees the file shares the folder.
TOKEN_VARIABLE = "TRAINYARD_TOKEN"
# A file made on another node may take a moment to show on a network file system.
_TOKEN_PATIENCE_SEC = 3.0
_NOTHING: Facts = {"problem": None, "cure": "", "classes": 0, "images": None, "digest": None}
_GIB = 1 << 30
_LOCAL_FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay")


def storage_facts(run_dir: Path | None, data: DataConfig | None) -> Facts:
    """The folder of the run and the data, None for what is left out; sizes in bytes."""
    return {
        "run_dir": None if run_dir is None else _run_dir_facts(run_dir),
        "data": None if data is None else _data_facts(data),
    }


@contextlib.contextmanager
def token_in(run_dir: Path) -> Iterator[str]:
    """A mark in the run directory, which must exist, for the nodes' environment as
    `TOKEN_VARIABLE`; gone at the end.

    Its name is new each time, as file servers' clients remember missing files by name.
    """
    token = secrets.token_hex(8)
    _token_path(run_dir, token).touch()
    try:
        yield token
    finally:
        _token_path(run_dir, token).unlink(missing_ok=True)


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
    found |= {"file_system": _file_system(place), "clock_offset_sec": None} | space(place)
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
        "cache": {"path": str(cache)} | space(cache),
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


def space(place: Path) -> Facts:
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return {"total_bytes": None, "free_bytes": None}
    return {"total_bytes": usage.total, "free_bytes": usage.free}


def run_directory(job: Job) -> Check | None:
    """All nodes can write to the run directory, and it is the same one."""
    if any(node["run_dir"] is None for node in job.nodes):
        return None
    run_dir = job.nodes[0]["run_dir"]
    path = run_dir["path"]
    closed = job.where(lambda node: node["run_dir"]["problem"])
    if closed:
        return Check("run directory", "fail", closed, "Set run.dir to a folder you can write to.")
    shared = f"Set run.dir to a folder on a shared file system; {path} is another one on each node."
    blind = job.where(
        lambda n: (
            f"{path} on {n['run_dir']['file_system']} is not the folder of the first node"
            if n["run_dir"]["sees_token"] is False
            else None
        )
    )
    if blind:
        return Check("run directory", "fail", blind, shared)
    unproved = job.several_nodes and run_dir["sees_token"] is None
    hosts = {node["host"] for node in job.nodes}
    if unproved and len(hosts) > 1 and run_dir["file_system"].split()[0] in _LOCAL_FILE_SYSTEMS:
        found = f"{path} is on {run_dir['file_system']}, which looks local"
        return Check("run directory", "warn", found, "Set run.dir to a shared file system.")
    seen = ", the same on all nodes" if job.several_nodes and not unproved else ""
    return Check("run directory", "ok", f"{path} on {run_dir['file_system']}{seen}")


def free_space(job: Job) -> Check | None:
    """The run directory, and the manifests' cache where it is still to be written, have room."""
    if any(node["run_dir"] is None for node in job.nodes):
        return None
    least = min(_free(node) for node in job.nodes)
    low = job.where(lambda n: f"{size(_free(n))} free" if _free(n) < 10 * _GIB else None)
    if low:
        cure = "Delete old runs, lower run.keep_checkpoints, or set run.dir to a larger disk."
        return Check("free space", "fail" if least < _GIB else "warn", low, cure)
    cramped = job.where(_cramped_cache)
    if cramped:
        cure = "Make room there, or set data.cache_dir to a folder on a larger disk."
        return Check("free space", "warn", cramped, cure)
    return Check("free space", "ok", f"{size(least)} for the run")


def _free(node: Facts) -> int:
    free = node["run_dir"]["free_bytes"]
    return 1 << 62 if free is None else int(free)


def _cramped_cache(node: Facts) -> str | None:
    data = node["data"]
    if data is None or data["cache"] is None or data["train"]["digest"] is not None:
        return None
    free = data["cache"]["free_bytes"]
    if free is None or free >= _GIB:
        return None
    return f"{size(free)} for the manifest's cache in {data['cache']['path']}"


def data(job: Job) -> Check | None:
    """Every node finds training and validation images, and they are the same data."""
    if any(node["data"] is None for node in job.nodes):
        return None
    for split in ("train", "val"):
        missing = job.where(lambda node, s=split: node["data"][s]["problem"])  # type: ignore[misc]
        if missing:
            return Check("data", "fail", missing, _cure_of_missing(job, split))
    for split in ("train", "val"):
        odd = _differing_data(job, split)
        if odd:
            cure = "Copy the data anew from one place, or point data.root at one shared folder."
            return Check("data", "fail", f"{split}: {odd}", cure)
    return Check("data", "ok", "; ".join(_seen(job, split) for split in ("train", "val")))


def _cure_of_missing(job: Job, split: str) -> str:
    cures = [node["data"][split]["cure"] for node in job.nodes]
    if all(cures):
        return f"{cures[0][0].upper()}{cures[0][1:]}."
    return "Mount or copy the data there, as they lie on the other nodes."


def _differing_data(job: Job, split: str) -> str:
    odd = job.odd_ones(lambda node: f"{node['data'][split]['classes']} classes")
    if odd:
        return odd
    known = Job([node for node in job.nodes if node["data"][split]["digest"]], job.ranks)
    return known.odd_ones(lambda node: f"data hash {node['data'][split]['digest'][:12]}")


def _seen(job: Job, split: str) -> str:
    """What is there; the hash is only known where a manifest of this state was made."""
    found = next((n["data"][split] for n in job.nodes if n["data"][split]["digest"]), None)
    if found is None:
        classes = job.nodes[0]["data"][split]["classes"]
        what = f"{classes} classes" if classes else "there"
        return f"{split} {what}, not scanned yet (the job's start does)"
    return f"{split} {found['images']} images, hash {found['digest'][:12]}"


def clock(job: Job) -> Check | None:
    """The clocks agree, as measured against that of the run directory's file server."""
    ahead = {n["node"]: _ahead_sec(n) for n in job.nodes}
    known = [seconds for seconds in ahead.values() if seconds is not None]
    cure = "Have the nodes' time set by one server; chronyc tracking shows what is wrong."
    # One node can only be compared with the file server.
    middle = statistics.median_low(known) if job.several_nodes and known else 0.0
    skew = max([*known, middle]) - min([*known, middle])
    if skew > 1:
        who = job.where(lambda n: _off_by(ahead[n["node"]], middle))
        return Check("clock", "fail" if skew > 60 else "warn", who, cure)
    # Some file systems (Lustre) take the client's time. All nodes are asked at once, so that
    # clocks far apart still show; a slow start looks the same, which is why this only warns.
    starts = [float(node["clock_sec"]) for node in job.nodes]
    spread = max(starts) - min(starts)
    if spread > 60:
        found = f"nodes began this check {spread:.0f} s apart by their own clocks"
        return Check("clock", "warn", found, cure)
    return Check("clock", "ok", f"within {max(skew, 0.01):.2f} s") if known else None


def _ahead_sec(node: Facts) -> float | None:
    offset = (node["run_dir"] or {}).get("clock_offset_sec")
    return None if offset is None else -float(offset)


def _off_by(ahead_sec: float | None, middle: float) -> str | None:
    if ahead_sec is None or abs(ahead_sec - middle) <= 0.5:
        return None
    direction = "ahead" if ahead_sec > middle else "behind"
    return f"{abs(ahead_sec - middle):.1f} s {direction}"


STORAGE_CHECKS = (run_directory, free_space, data, clock)
