"""Checks of what nodes share: the run directory, its space and clock, and the data."""

from __future__ import annotations

import statistics

from launch.doctor.judge import Check, Facts, Job, size

_GIB = 1 << 30
_LOCAL_FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay")


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
    return Check("run directory", "ok", f"{path} on {run_dir['file_system']}{seen}", "")


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
    return Check("free space", "ok", f"{size(least)} for the run", "")


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
    return Check("data", "ok", "; ".join(_seen(job, split) for split in ("train", "val")), "")


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
    return Check("clock", "ok", f"within {max(skew, 0.01):.2f} s", "") if known else None


def _ahead_sec(node: Facts) -> float | None:
    offset = (node["run_dir"] or {}).get("clock_offset_sec")
    return None if offset is None else -float(offset)


def _off_by(ahead_sec: float | None, middle: float) -> str | None:
    if ahead_sec is None or abs(ahead_sec - middle) <= 0.5:
        return None
    direction = "ahead" if ahead_sec > middle else "behind"
    return f"{abs(ahead_sec - middle):.1f} s {direction}"


STORAGE_CHECKS = (run_directory, free_space, data, clock)
