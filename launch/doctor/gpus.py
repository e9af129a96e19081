"""The GPUs of a node and their driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launch.doctor.check import Facts, Finding, Job, Rules, size
from launch.doctor.storage import LOCAL_FILE_SYSTEMS, file_system, nearest_folder
from pipeline.system.gpus import gpus_kept_out, query_gpus
from pipeline.system.machine import triton_cache

_BUSY_BYTES = 1 << 30


def gpu_facts() -> Facts:
    """What the driver reports of its GPUs: none, no driver and no problem without nvidia-smi; and
    where kernels compiled for them will be kept."""
    names = ("index", "name", "uuid", "memory.total", "memory.used", "driver_version")
    rows, problem = query_gpus(*names)
    try:
        gpus = [_gpu(*row) for row in rows]
    except (TypeError, ValueError):
        said = " ".join(word for row in rows for word in row)[:200]
        rows, gpus, problem = [], [], f"what nvidia-smi says cannot be read: {said}"
    cache = triton_cache()
    kept = {"path": str(cache), "file_system": file_system(nearest_folder(cache.absolute()))}
    driver = rows[-1][-1] if rows else None
    return {
        "gpus": gpus,
        "driver": driver,
        "gpu_problem": problem,
        "gpus_kept_out": gpus_kept_out(),
        "triton_cache": kept,
    }


def _gpu(index: str, name: str, uuid: str, total: str, used: str, _driver: str) -> dict[str, Any]:
    sizes = {"memory_bytes": _mebibytes(total), "used_bytes": _mebibytes(used)}
    return {"index": int(index), "name": name, "uuid": uuid, **sizes}


def _mebibytes(text: str) -> int | None:
    # "[N/A]" where GPU and host share their memory, and on a GPU cut into MIG slices.
    return int(text) << 20 if text.isdigit() else None


def driver(job: Job) -> Iterator[Finding]:
    """Checks that the driver answers, in the same version everywhere."""
    broken = job.where(lambda n: n["gpu_problem"])
    fix = "Ask the administrator to repair the driver there, and leave the node out until then."
    yield Finding("fail" if job.first["asked"]["device"] != "cpu" else "warn", broken, fix)
    fix = "Ask the administrator for one driver, or choose nodes that have the same."
    yield Finding("warn", job.odd_ones(lambda n: n["driver"]), fix)
    yield Finding("ok", job.first["driver"] or "")


def gpus(job: Job) -> Iterator[Finding]:
    """Checks that every rank gets a GPU for PyTorch and DALI, or that all nodes train on CPUs."""
    asked = job.first["asked"]["device"]
    if asked == "cpu":
        yield Finding("ok", "not used, run.device=cpu")
    cures = [node["gpus_kept_out"] for node in job.nodes if node["gpus_kept_out"]]
    shut = job.where(lambda n: n["gpus_kept_out"] and "Slurm's GPUs are not in the container")
    yield Finding("fail", shut, f"Start it with {cures[0]}." if cures else "")
    # Auto takes CPUs only where the driver lists no GPU (pipeline/ranks/places.py).
    trouble = job.where(lambda n: n["gpu_trouble"] and n["gpu_trouble"]["found"])
    cures = [node["gpu_trouble"]["cure"] for node in job.nodes if node["gpu_trouble"]]
    yield Finding("fail", trouble, _sentence(cures[0]) if cures else "")
    idle = job.where(_why_no_gpu, when=lambda n: n["device"] == "cpu")
    if asked == "cuda":
        fix = "Ask for GPUs (sbatch --gpus-per-node=8), or set run.device=cpu."
        yield Finding("fail", idle, fix)
    if len({node["device"] for node in job.nodes}) > 1:
        fix = "Leave these nodes out, or set run.device=cpu to train on the CPUs of all."
        yield Finding("fail", f"no GPU to use on some nodes: {idle}", fix)
    hidden = any(node["gpus"] for node in job.nodes)
    fix = "Unset CUDA_VISIBLE_DEVICES to train on them." if hidden else ""
    yield Finding("warn" if hidden else "ok", idle, fix)
    blind = job.where(
        lambda n: f"DALI sees none of {len(n['gpus'])} GPUs, so JPEGs are decoded on the CPU",
        when=lambda n: n["dali_gpus"] == 0,
    )
    fix = "Take a newer driver, or the DALI wheel for its CUDA version (nvidia-dali-cuda120)."
    yield Finding("warn", blind, fix)
    few = job.where(
        lambda n: f"{job.ranks_on(n)} ranks but {n['torch_gpus']} GPUs",
        when=lambda n: (job.ranks_on(n) or 0) > n["torch_gpus"],
    )
    yield Finding("fail", few, "Start at most one rank per GPU on each node.")
    # Where ranks are counted, a node may well have more GPUs than it is asked for.
    odd = job.odd_ones(_models) or ("" if job.ranks else job.odd_ones(lambda n: n["torch_gpus"]))
    yield Finding("warn", odd, "Choose identical nodes: every step waits for the slowest rank.")
    uuids = [gpu["uuid"] for node in job.nodes for gpu in node["gpus"]]
    if len(set(uuids)) < len(uuids):
        fix = "See that no two ranks share a GPU: these nodes are parts of one machine."
        yield Finding("warn", "nodes show the same GPUs (UUID)", fix)
    total = sum(node["torch_gpus"] for node in job.nodes)
    yield Finding("ok", f"{total} ({_models(job.first)})")


def _models(node: Facts) -> str:
    return ", ".join(dict.fromkeys(gpu["name"] for gpu in node["gpus"])) or "unnamed"


def _why_no_gpu(node: Facts) -> str:
    if not node["gpus"]:
        return "no NVIDIA GPU, training runs on the CPU"
    return f"CUDA_VISIBLE_DEVICES hides {len(node['gpus'])} GPUs, training runs on the CPU"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def gpu_memory(job: Job) -> Iterator[Finding]:
    """Checks that no other process holds GPU memory."""
    if any(node["device"] != "cpu" for node in job.nodes):
        fix = "End the processes that nvidia-smi lists, if they are yours, or choose other nodes."
        yield Finding("warn", job.where(_busy_gpus), fix)


def _busy_gpus(node: Facts) -> str | None:
    busy = [gpu for gpu in node["gpus"] if (gpu["used_bytes"] or 0) > _BUSY_BYTES]
    return ", ".join(f"GPU {gpu['index']} holds {size(gpu['used_bytes'])}" for gpu in busy) or None


def kernel_cache(job: Job) -> Iterator[Finding]:
    """Checks that no two nodes share Triton's cache, which many ranks at once can break."""
    if any(node["device"] == "cpu" for node in job.nodes):
        return
    local = (*LOCAL_FILE_SYSTEMS, "unknown")
    shared = job.where(
        lambda n: f"{_kept(n)}, which other nodes may share",
        when=lambda n: n["triton_cache"]["file_system"].split()[0] not in local,
    )
    fix = "Set TRITON_CACHE_DIR to a folder on the node's own disk, such as /tmp/triton-$USER."
    yield Finding("warn" if job.several_ranks else "ok", shared, fix if job.several_ranks else "")
    yield Finding("ok", _kept(job.first))


def _kept(node: Facts) -> str:
    return f"{node['triton_cache']['path']} on {node['triton_cache']['file_system']}"


GPU_CHECKS: Rules = {
    "driver": driver,
    "GPUs": gpus,
    "GPU memory": gpu_memory,
    "Triton cache": kernel_cache,
}
