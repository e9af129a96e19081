"""The GPUs of a node and their driver."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from launch.doctor.check import Check, Facts, Job, size

_BUSY_BYTES = 1 << 30
_QUERY = "index,name,uuid,memory.total,memory.used,driver_version"


def gpu_facts() -> Facts:
    """What the driver says of its GPUs."""
    gpus, driver, problem = read_gpus()
    return {"gpus": gpus, "driver": driver, "gpu_problem": problem}


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


def driver(job: Job) -> Check | None:
    """The driver answers, in the same version everywhere."""
    broken = job.where(lambda node: node["gpu_problem"])
    if broken:
        fails = job.nodes[0]["asked"]["device"] != "cpu"
        cure = "Ask the administrator to mend the driver there, and leave the node out till then."
        return Check("driver", "fail" if fails else "warn", broken, cure)
    if all(node["driver"] is None for node in job.nodes):
        return None
    odd = job.odd_ones(lambda node: node["driver"])
    if odd:
        cure = "Ask the administrator for one driver, or choose nodes that have the same."
        return Check("driver", "warn", odd, cure)
    return Check("driver", "ok", str(job.nodes[0]["driver"]))


def gpus(job: Job) -> Check:
    """Every rank gets a GPU that PyTorch and DALI can use, or all nodes train on CPUs."""
    asked = job.nodes[0]["asked"]["device"]
    if asked == "cpu":
        return Check("GPUs", "ok", "not used, run.device=cpu")
    idle = job.where(lambda node: _why_no_gpu(node) if node["device"] == "cpu" else None)
    if idle and asked == "cuda":
        cure = "Ask for GPUs (sbatch --gpus-per-node=8), or set run.device=cpu."
        return Check("GPUs", "fail", idle, _cure_no_gpu(job) or cure)
    if len({node["device"] for node in job.nodes}) > 1:
        cure = "Leave these nodes out, or set run.device=cpu to train on the CPUs of all."
        return Check("GPUs", "fail", f"no GPU to use on some nodes: {idle}", cure)
    if idle:
        fallen = any(node["gpus"] for node in job.nodes)
        return Check("GPUs", "warn" if fallen else "ok", idle, _cure_no_gpu(job))
    return _gpus_in_use(job)


def _gpus_in_use(job: Job) -> Check:
    blind = job.where(
        lambda n: f"DALI sees none of {len(n['gpus'])} GPUs" if n["dali_gpus"] == 0 else None
    )
    if blind:
        cure = "Take a newer driver, or the DALI wheel for its CUDA version (nvidia-dali-cuda120)."
        return Check("GPUs", "warn", f"JPEGs are decoded on the CPU: {blind}", cure)
    few = job.where(
        lambda n: (
            f"{job.ranks_on(n)} ranks but {n['torch_gpus']} GPUs"
            if (job.ranks_on(n) or 0) > n["torch_gpus"]
            else None
        )
    )
    if few:
        return Check("GPUs", "fail", few, "Start at most one rank per GPU on each node.")
    # Where ranks are counted, a node may well have more GPUs than it is asked for.
    odd = job.odd_ones(_models) or ("" if job.ranks else job.odd_ones(lambda n: n["torch_gpus"]))
    if odd:
        cure = "Choose nodes that are alike: every step waits for the slowest rank."
        return Check("GPUs", "warn", odd, cure)
    uuids = [gpu["uuid"] for node in job.nodes for gpu in node["gpus"]]
    if len(set(uuids)) < len(uuids):
        cure = "See that no two ranks get one GPU: these nodes are parts of one machine."
        return Check("GPUs", "warn", "nodes show the same GPUs (UUID)", cure)
    total = sum(node["torch_gpus"] for node in job.nodes)
    return Check("GPUs", "ok", f"{total} ({_models(job.nodes[0])})")


def _models(node: Facts) -> str:
    return ", ".join(dict.fromkeys(gpu["name"] for gpu in node["gpus"])) or "unnamed"


def _why_no_gpu(node: Facts) -> str:
    if not node["gpus"]:
        return "no NVIDIA GPU, training runs on the CPU"
    if node["versions"].get("torch CUDA") is None:
        return (
            f"{len(node['gpus'])} GPUs, but PyTorch {node['versions']['torch']} is built for CPUs"
        )
    return f"{len(node['gpus'])} GPUs, but PyTorch can use none"


def _cure_no_gpu(job: Job) -> str:
    why = {_why_no_gpu(node).partition(", but ")[2] for node in job.nodes} - {""}
    if any("built for CPUs" in reason for reason in why):
        return "Install a CUDA build of PyTorch, as in make train TORCH=torch==2.13.0."
    if why:
        return "Look at CUDA_VISIBLE_DEVICES, and whether the driver is new enough for PyTorch."
    return ""


def gpu_memory(job: Job) -> Check | None:
    """No other process holds memory of the GPUs."""
    busy = job.where(_busy_gpus)
    if not busy or all(node["device"] == "cpu" for node in job.nodes):
        return None
    cure = "End the processes that nvidia-smi lists, if they are yours, or choose other nodes."
    return Check("GPU memory", "warn", busy, cure)


def _busy_gpus(node: Facts) -> str | None:
    busy = [gpu for gpu in node["gpus"] if (gpu["used_bytes"] or 0) > _BUSY_BYTES]
    return ", ".join(f"GPU {gpu['index']} holds {size(gpu['used_bytes'])}" for gpu in busy) or None


GPU_CHECKS = (driver, gpus, gpu_memory)
