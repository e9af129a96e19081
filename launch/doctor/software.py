"""The software of a node: versions, what Horovod was built with, which apex, which norm layers.

A problem is one of the facts, never an exception: one broken package must not hide the others.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, cast

from launch.doctor.check import Facts, Finding, Job, Rules, Status
from pipeline.system.gpus import unusable_gpus, usable_count
from pipeline.system.machine import DALI, version_of

_CODE = Path(__file__).resolve().parent.parent.parent
_REBUILD = "python -m launch.horovod_build --install"
_TORCHRUN = "torchrun --nproc-per-node=N -m pipeline.train"


def software_facts(device: Literal["auto", "cpu", "cuda"], norm: str, amp: str, gpus: int) -> Facts:
    """Versions (null: none), GPUs as PyTorch and DALI see them, engines, apex, norm layers.

    `gpus` is how many the driver shows; DALI is only loaded when there are any. Imports torch and
    Horovod, which takes 2 to 3 s.
    """
    found: Facts = {
        "versions": {
            "python": platform.python_version(),
            "torch": version_of("torch"),
            "torch CUDA": None,
            "NCCL": None,
            "DALI": " ".join(f"{v} ({n})" for n in DALI if (v := version_of(n))) or None,
            "Horovod": version_of("horovod"),
            "numpy": version_of("numpy"),
            "trainyard": code_digest(_CODE),
        },
        "horovod": _horovod(),
        "torch_distributed": {"gloo": False, "nccl": False},
        "apex": None,
        "norm_problems": {},
        "torch_problem": None,
        "torch_gpus": 0,
        "gpu_trouble": None,
        "dali_gpus": None,
        "device": "cpu",
    }
    try:
        _ask_torch(found, device, amp)
    except Exception as error:  # whatever a broken installation or driver raises
        found["torch_problem"] = _one_line(error)
    if gpus and device != "cpu":
        found["dali_gpus"] = _dali_gpus()
    return found


def code_digest(root: Path) -> str:
    """12 hex digits that differ when any Python file of `pipeline/` or `launch/` does."""
    sha = hashlib.sha256()
    for folder in ("launch", "pipeline"):
        for path in sorted((root / folder).rglob("*.py")):
            sha.update(b"%s\0%s\0" % (os.fsencode(path.relative_to(root)), path.read_bytes()))
    return sha.hexdigest()[:12]


def _ask_torch(found: Facts, device: str, amp: str) -> None:
    import torch

    from pipeline.model.backends import Amp, apex_package, problems

    found["versions"]["torch CUDA"] = torch.version.cuda
    if torch.version.cuda is not None:
        found["versions"]["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        found["torch_gpus"] = usable_count()
    if device != "cpu" and (trouble := unusable_gpus()) is not None:
        found["gpu_trouble"] = trouble._asdict()
    found["torch_distributed"] = backends()
    found["device"] = "cuda" if device != "cpu" and found["torch_gpus"] else "cpu"
    found["apex"] = apex_package()[0]
    on = torch.device("cuda", 0) if found["device"] == "cuda" else torch.device("cpu")
    found["norm_problems"] = problems(on, cast(Amp, amp))


def backends() -> Facts:
    """What torch.distributed of the installed PyTorch can communicate over."""
    try:
        from pipeline.ranks.store import backends_built
    except ImportError:  # a PyTorch built without it
        return {"gloo": False, "nccl": False}
    return dict(backends_built())


def _horovod() -> Facts:
    """What Horovod was built with; `problem` says why it cannot be used, or is null."""
    try:
        import horovod.torch as hvd
    except Exception as error:  # not installed, or built for another torch
        return {"problem": _one_line(error), "nccl": False, "gloo": False}
    return {"problem": None, "nccl": bool(hvd.nccl_built()), "gloo": bool(hvd.gloo_built())}


def _dali_gpus() -> int | None:
    """GPUs that DALI can use: 0 where the driver is too old for its CUDA; None without DALI."""
    try:
        from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined]

        return int(GetCUDADeviceCount())
    except Exception:  # the check of the versions reports a missing DALI
        return None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def versions(job: Job) -> Iterator[Finding]:
    """Checks that packages and code are installed, the same on all nodes."""
    fix = "Install them there, by make train in a checkout, or start the job from a shared one."
    yield Finding("fail", job.where(_not_installed), fix)
    names = dict.fromkeys(name for node in job.nodes for name in node["versions"])
    odd = {name: job.odd_ones(lambda n, name=name: n["versions"].get(name)) for name in names}  # type: ignore[misc]
    differing = "; ".join(f"{name}: {who}" for name, who in odd.items() if who)
    fix = "Use one environment and one checkout on all nodes, best on a shared file system."
    yield Finding("fail", differing, fix)
    yield Finding("ok", ", ".join(f"{n} {v}" for n, v in job.first["versions"].items() if v))


def _not_installed(node: Facts) -> str:
    missing = [name for name in ("torch", "DALI", "numpy") if not node["versions"].get(name)]
    return f"not installed: {', '.join(missing)}" if missing else ""


def torch_works(job: Job) -> Iterator[Finding]:
    """Checks that PyTorch can be imported."""
    fix = "Install PyTorch there again, by make train or pip, in the version of the other nodes."
    yield Finding("fail", job.where(lambda n: n["torch_problem"]), fix)


def horovod(job: Job) -> Iterator[Finding]:
    """Checks Horovod, if it is installed or asked for: Gloo to find each other, NCCL for GPUs."""
    absent = all(node["versions"].get("Horovod") is None for node in job.nodes)
    if job.engine == "torch" or (absent and job.engine is None):
        found = "not installed" if absent else _built(job, lambda n: n["horovod"])
        yield Finding("ok", f"{found}; ranks of torchrun need none")
    status: Status = "fail" if job.several_ranks else "warn"
    fix = f"Build it with {_REBUILD}, or start the ranks by torchrun; one rank alone needs none."
    yield Finding(status, job.where(lambda n: n["horovod"]["problem"]), fix)
    no_gloo = job.where(lambda n: None if n["horovod"]["gloo"] else "built without Gloo")
    fix = f"Ranks find each other over Gloo: {_REBUILD} builds it."
    yield Finding(status, no_gloo, fix)
    # One GPU needs no collective, but several ranks may come.
    no_nccl = job.where(
        lambda _: "built without NCCL, so that ranks on GPUs would hang at the first gradient",
        when=lambda n: n["device"] == "cuda" and not n["horovod"]["nccl"],
    )
    if job.engine == "horovod" and any(node["torch_gpus"] > 1 for node in job.nodes):
        status = "fail"
    fix = f"Put nvcc on the PATH and run {_REBUILD}, or start the ranks by {_torchrun(job)}."
    yield Finding(status, no_nccl, fix)
    yield Finding("ok", _built(job, lambda n: n["horovod"]))


def torch_distributed(job: Job) -> Iterator[Finding]:
    """Checks that PyTorch can connect ranks: over Gloo, and NCCL on GPUs."""
    needed: Status = "fail" if job.engine == "torch" and job.several_ranks else "warn"
    lacks = job.where(
        lambda n: f"this PyTorch has no {' and no '.join(_lacking(n))}",
        when=lambda n: n["torch_problem"] is None and _lacking(n),
    )
    fix = "Install PyTorch as pip has it, or start the ranks by horovodrun."
    yield Finding(needed, lacks, fix)
    yield Finding("ok", _built(job, lambda n: n["torch_distributed"]))


def _lacking(node: Facts) -> list[str]:
    needed = {"gloo": "Gloo", "nccl": "NCCL"} if node["device"] == "cuda" else {"gloo": "Gloo"}
    return [name for key, name in needed.items() if not node["torch_distributed"][key]]


def _torchrun(job: Job) -> str:
    return _TORCHRUN if job.engine is None else "--launch.engine=torch"


def _built(job: Job, engine: Callable[[Facts], Facts]) -> str:
    built = [n for n in ("nccl", "gloo") if all(engine(node)[n] for node in job.nodes)]
    return f"built with {' and '.join(built)}" if built else "not usable"


def norm(job: Job) -> Iterator[Finding]:
    """Checks that the requested norm layer can run on every node."""
    asked = job.first["asked"]["norm"]
    problem = job.where(lambda n: n["norm_problems"].get(asked))
    if problem:
        fix = "Repair that, or set model.norm=auto, which takes what works."
        yield Finding("fail", f"model.norm={asked} cannot run: {problem}", fix)
    able = [
        name
        for name in ("reference", "triton", "apex")
        if all(name in n["norm_problems"] and not n["norm_problems"][name] for n in job.nodes)
    ]
    if able:  # else PyTorch is missing, which its own check reports
        yield Finding("ok", f"model.norm={asked}; {', '.join(able)} can run")


def apex(job: Job) -> Iterator[Finding]:
    """Checks that the package apex is NVIDIA's, if the norm layer needs it."""
    if any(node["apex"] is None for node in job.nodes):
        return
    needed = job.first["asked"]["norm"] == "apex"
    wrong = job.where(lambda n: n["apex"] if n["apex"] != "NVIDIA's with bnp" else None)
    if needed:
        fix = (
            "Uninstall any other apex and build https://github.com/NVIDIA/apex from source with "
            "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_BNP=1, or set model.norm=auto."
        )
        yield Finding("fail", wrong, fix)
    yield Finding("ok", f"{wrong or job.first['apex']}{'' if needed else ', not used'}")


SOFTWARE_CHECKS: Rules = {
    "versions": versions,
    "PyTorch": torch_works,
    "Horovod": horovod,
    "torch.distributed": torch_distributed,
    "norm layer": norm,
    "apex": apex,
}
