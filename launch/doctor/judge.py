"""The facts of a node, and the verdict over all nodes of a job, one topic after the other."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from launch.doctor.check import Check, Facts, Finding, Job, Rules, few
from launch.doctor.gpus import GPU_CHECKS, gpu_facts
from launch.doctor.host import HOST_CHECKS, host_facts
from launch.doctor.network import NETWORK_CHECKS, network_facts
from launch.doctor.software import SOFTWARE_CHECKS, software_facts
from launch.doctor.storage import STORAGE_CHECKS, storage_facts
from pipeline.config import DataConfig
from pipeline.system.launched import Engine


def facts(
    run_dir: Path | None,
    data: DataConfig | None,
    device: Literal["auto", "cpu", "cuda"],
    norm: str,
    amp: str,
) -> Facts:
    """The facts of this node: a dictionary that JSON can hold, sizes in bytes, times in seconds.

    `run_dir` and `data` are those of the run, None to leave them out; the others are the settings
    run.device, model.norm and optim.amp. Takes 2 to 5 s, and changes nothing but one temporary file
    in the run directory, which it removes. A failure on the way is a fact too, so that one missing
    thing does not hide the others.
    """
    started_sec, clock_sec = time.monotonic(), time.time()
    host = socket.gethostname()
    gpus = gpu_facts()
    found: Facts = {
        "node": os.environ.get("SLURMD_NODENAME") or host,
        "host": host,
        "asked": {"device": device, "norm": norm, "amp": amp},
        "clock_sec": clock_sec,
    }
    found |= gpus | storage_facts(run_dir, data) | network_facts() | host_facts()
    found |= software_facts(device, norm, amp, len(gpus["gpus"]))
    return found | {"took_sec": round(time.monotonic() - started_sec, 2)}


def judge(
    nodes: Sequence[Facts], ranks: Mapping[str, int] | None = None, engine: Engine | None = None
) -> list[Check]:
    """The checks of the facts of all nodes of a job, in the order of the table.

    `ranks` is how many ranks each node is to run, by node name, where a launcher knows it: then
    GPUs and cores are counted against it and nodes that did not answer are named. `engine` is what
    they will communicate over: that one must work, of the other it is only said.
    """
    job = Job(nodes, ranks, engine)
    checks = []
    for name, check in (_CHECKS if nodes else {"nodes": answers}).items():
        finding = next((finding for finding in check(job) if finding.found), None)
        if finding is not None:
            checks.append(Check(name, *finding))
    return checks


def answers(job: Job) -> Iterator[Finding]:
    """Checks that every node has reported its facts."""
    names = [node["node"] for node in job.nodes]
    silent = [name for name in job.ranks or {} if name not in names]
    if silent or not names:
        found = f"no answer from {few(silent) or 'any node'}"
        fix = "Read what the check printed there, and leave broken nodes out with --exclude."
        yield Finding("fail", found, fix)
    slowest = max(float(node["took_sec"]) for node in job.nodes)
    yield Finding("ok", f"{len(names)} ({few(names)}), checked in {slowest:.1f} s")


_CHECKS: Rules = {
    "nodes": answers,
    **SOFTWARE_CHECKS,
    **GPU_CHECKS,
    **STORAGE_CHECKS,
    **NETWORK_CHECKS,
    **HOST_CHECKS,
}
