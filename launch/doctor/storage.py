"""What nodes share: the run directory, its space and clock, and the data."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil

from launch.doctor.check import Facts, Finding, Job, Rules, size
from pipeline.config import ConfigError, DataConfig

# The launcher writes a token into the run directory; a node that sees the file shares the folder.
TOKEN_VARIABLE = "TRAINYARD_TOKEN"
# A file made on another node may take a moment to show on a network file system.
_TOKEN_PATIENCE_SEC = 3.0
_GIB = 1 << 30
LOCAL_FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay")


def storage_facts(run_dir: Path | None, data: DataConfig | None) -> Facts:
    """The folder of the run and the data, None for what is left out; sizes in bytes."""
    return {
        "run_dir": None if run_dir is None else _run_dir_facts(run_dir),
        "data": None if data is None else _data_facts(data),
    }


@contextlib.contextmanager
def token_in(run_dir: Path) -> Iterator[dict[str, str]]:
    """Makes the run directory and a mark in it, removed at the end; yields the environment variable
    by which a node proves that it shares the folder.

    The mark's name is new each time, as clients of file servers cache missing names. Raises
    `ConfigError` where it cannot be written.
    """
    token = secrets.token_hex(8)
    path = _token_path(run_dir, token)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ConfigError(
            f"the folder of the run, {run_dir}, cannot be written ({error.strerror}); set run.dir"
        ) from error
    try:
        yield {TOKEN_VARIABLE: token}
    finally:
        path.unlink(missing_ok=True)


def _token_path(run_dir: Path, token: str) -> Path:
    return run_dir / f".doctor-{token}"


def _run_dir_facts(run_dir: Path) -> Facts:
    """The run directory, or the folder it will be made in if it does not exist yet."""
    place = nearest_folder(run_dir.absolute())
    token = os.environ.get(TOKEN_VARIABLE)
    found = {
        "path": str(run_dir),
        "exists": place == run_dir.absolute(),
        "problem": None,
        "sees_token": _sees_token(run_dir, token) if token else None,
        "file_system": file_system(place),
        "clock_offset_sec": None,
        **space(place),
    }
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            now = time.time()
            found["clock_offset_sec"] = round(os.stat(file.name).st_mtime - now, 3)
    except OSError as error:
        found["problem"] = f"{place} cannot be written ({error.strerror})"
    return found


def nearest_folder(path: Path) -> Path:
    """`path` or the first above it that exists."""
    # os.path.exists, as Path.exists raises for a folder that must not be looked into.
    return next(place for place in (path, *path.parents) if os.path.exists(place))


def _sees_token(run_dir: Path, token: str) -> bool:
    end = time.monotonic() + _TOKEN_PATIENCE_SEC
    while not (seen := os.path.exists(_token_path(run_dir, token))) and time.monotonic() < end:
        time.sleep(0.1)
    return seen


def file_system(place: Path) -> str:
    """Type and source of the file system that holds `place`, as `nfs4 server:/home`; "unknown"
    where no mount is shown, as in some containers."""
    real = place.resolve()
    around = [
        one for one in psutil.disk_partitions(all=True) if real.is_relative_to(one.mountpoint)
    ]
    # The deepest; of several that are mounted at one place the last, which hides the others.
    found = max(reversed(around), key=lambda one: len(one.mountpoint), default=None)
    return "unknown" if found is None else f"{found.fstype} {found.device}"


def _data_facts(config: DataConfig) -> Facts:
    """The two splits, and the folder of the image indexes, which CIFAR-10 does not need."""
    root = Path(config.root)
    if config.dataset == "cifar-10":
        return {"path": str(root), "cache": None, **_archive_facts(root, config.held_out)}
    from pipeline.data.index.arrow_file import cache_places

    cache_dir = None if config.cache_dir is None else Path(config.cache_dir)
    cache = nearest_folder(cache_places(root, "train", cache_dir)[0].parent)
    return {
        "path": str(root),
        "train": _split_facts(root, "train", cache_dir),
        "val": _split_facts(root, "val", cache_dir),
        "cache": {"path": str(cache)} | space(cache),
    }


def _archive_facts(root: Path, held_out: int | None) -> Facts:
    """The two splits of CIFAR-10's archive, read as a job would read it."""
    from pipeline.data.cifar import open_cifar

    try:
        splits = open_cifar(root, held_out)
    except (OSError, ValueError) as error:
        return dict.fromkeys(("train", "val"), _split(error))
    return {
        images.split: _split(None, len(images.classes), len(images), images.digest)
        for images in splits
    }


def _split_facts(root: Path, split: Literal["train", "val"], cache_dir: Path | None) -> Facts:
    """Class folders and, where an image index is up to date, the data hash. Never reads images.

    Containers have no class folders and count 0.
    """
    from pipeline.data.index.manifest import cached_manifest
    from pipeline.data.index.survey import survey

    try:
        classes = len(survey(root, split).classes)
        manifest = cached_manifest(root, split, cache_dir)
    except (OSError, ValueError) as error:
        return _split(error)
    if manifest is None:
        return _split(None, classes)
    return _split(None, classes, len(manifest), manifest.digest)


def _split(
    error: Exception | None, classes: int = 0, images: int | None = None, digest: str | None = None
) -> Facts:
    """The facts of a split; data errors say what to do after a semicolon."""
    problem, _, fix = str(error or "").partition("; ")
    known = {"classes": classes, "images": images, "digest": digest}
    return {"problem": problem or None, "cure": fix, **known}


def space(place: Path) -> Facts:
    """Free space on the file system of `place`, None if it does not exist."""
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return {"total_bytes": None, "free_bytes": None}
    return {"total_bytes": usage.total, "free_bytes": usage.free}


def run_directory(job: Job) -> Iterator[Finding]:
    """Checks that all nodes can write to the run directory, and that it is the same one."""
    if any(node["run_dir"] is None for node in job.nodes):
        return
    run_dir = job.first["run_dir"]
    path, system = run_dir["path"], run_dir["file_system"]
    closed = job.where(lambda n: n["run_dir"]["problem"])
    yield Finding("fail", closed, "Set run.dir to a folder you can write to.")
    blind = job.where(
        lambda n: f"{path} on {n['run_dir']['file_system']} is not the folder of the first node",
        when=lambda n: n["run_dir"]["sees_token"] is False,
    )
    fix = f"Set run.dir to a folder on a shared file system; {path} differs between nodes."
    yield Finding("fail", blind, fix)
    unproved = job.several_nodes and run_dir["sees_token"] is None
    several_hosts = len({node["host"] for node in job.nodes}) > 1
    if unproved and several_hosts and system.split()[0] in LOCAL_FILE_SYSTEMS:
        found = f"{path} is on {system}, which looks local"
        yield Finding("warn", found, "Set run.dir to a shared file system.")
    seen = ", the same on all nodes" if job.several_nodes and not unproved else ""
    yield Finding("ok", f"{path} on {system}{seen}")


def free_space(job: Job) -> Iterator[Finding]:
    """Checks that the run directory, and the image index if still to be written, have room."""
    if any(node["run_dir"] is None for node in job.nodes):
        return
    least = min(_free(node) for node in job.nodes)
    low = job.where(lambda n: f"{size(_free(n))} free" if _free(n) < 10 * _GIB else None)
    fix = "Delete old runs, lower run.keep_checkpoints, or set run.dir to a larger disk."
    yield Finding("fail" if least < _GIB else "warn", low, fix)
    fix = "Make room there, or set data.cache_dir to a folder on a larger disk."
    yield Finding("warn", job.where(_cramped_cache), fix)
    yield Finding("ok", f"{size(least)} for the run")


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
    return f"{size(free)} for the image index in {data['cache']['path']}"


def data(job: Job) -> Iterator[Finding]:
    """Checks that every node finds the same training and validation images."""
    if any(node["data"] is None for node in job.nodes):
        return
    for split in ("train", "val"):
        missing = job.where(lambda n, split=split: n["data"][split]["problem"])  # type: ignore[misc]
        yield Finding("fail", missing, _fix_of_missing(job, split))
    for split in ("train", "val"):
        odd = _differing_data(job, split)
        fix = "Copy the data again from one source, or point data.root at one shared folder."
        yield Finding("fail", f"{split}: {odd}" if odd else "", fix)
    seen = "; ".join(_seen(job, split) for split in ("train", "val"))
    if not any(node["data"]["train"]["digest"] for node in job.nodes):
        # Which images or classes training refuses is not known before.
        root = shlex.quote(job.first["data"]["path"])
        command = f"python -m pipeline.prepare index --root={root}"
        fix = f"Run {command} to see which images training would refuse."
        yield Finding("warn", seen, fix)
    yield Finding("ok", seen)


def _fix_of_missing(job: Job, split: str) -> str:
    fixes = [node["data"][split]["cure"] for node in job.nodes]
    if all(fixes):
        return f"{fixes[0][0].upper()}{fixes[0][1:]}."
    return "Mount or copy the data there, as they lie on the other nodes."


def _differing_data(job: Job, split: str) -> str:
    known = Job([node for node in job.nodes if node["data"][split]["digest"]], job.ranks)
    return job.odd_ones(lambda n: f"{n['data'][split]['classes']} classes") or known.odd_ones(
        lambda n: f"data hash {n['data'][split]['digest'][:12]}"
    )


def _seen(job: Job, split: str) -> str:
    """What the split holds; the hash is known only where an image index is up to date."""
    found = next((n["data"][split] for n in job.nodes if n["data"][split]["digest"]), None)
    if found is None:
        classes = job.first["data"][split]["classes"]
        what = f"{classes} classes" if classes else "there"
        return f"{split} {what}, not indexed yet (the job's start does)"
    return f"{split} {found['images']} images, hash {found['digest'][:12]}"


def clock(job: Job) -> Iterator[Finding]:
    """Checks that the clocks agree, measured against that of the run directory's file server."""
    ahead = {n["node"]: _ahead_sec(n) for n in job.nodes}
    known = [seconds for seconds in ahead.values() if seconds is not None]
    fix = "Have the nodes' time set by one server; chronyc tracking shows what is wrong."
    # One node can only be compared with the file server.
    middle = statistics.median_low(known) if job.several_nodes and known else 0.0
    skew = max([*known, middle]) - min([*known, middle])
    if skew > 1:
        who = job.where(lambda n: _off_by(ahead[n["node"]], middle))
        yield Finding("fail" if skew > 60 else "warn", who, fix)
    # Some file systems (Lustre) take the client's time. All nodes are asked at once, so that
    # clocks far apart still show; a slow start looks the same, which is why this only warns.
    starts = [float(node["clock_sec"]) for node in job.nodes]
    spread = max(starts) - min(starts)
    if spread > 60:
        yield Finding("warn", f"nodes began this check {spread:.0f} s apart by their clocks", fix)
    if known:
        yield Finding("ok", f"within {max(skew, 0.01):.2f} s")


def _ahead_sec(node: Facts) -> float | None:
    offset = (node["run_dir"] or {}).get("clock_offset_sec")
    return None if offset is None else -float(offset)


def _off_by(ahead_sec: float | None, middle: float) -> str | None:
    if ahead_sec is None or abs(ahead_sec - middle) <= 0.5:
        return None
    direction = "ahead" if ahead_sec > middle else "behind"
    return f"{abs(ahead_sec - middle):.1f} s {direction}"


STORAGE_CHECKS: Rules = {
    "run directory": run_directory,
    "free space": free_space,
    "data": data,
    "clock": clock,
}
