"""Worker processes for benchmarks of ranks, which run tasks on request and answer in JSON.

Several groups live through a whole benchmark and are measured in turns. Those not being measured
are stopped by SIGSTOP: Horovod's thread would keep exchanging messages every cycle and slow the
others.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.benchmark.device import pick_device
from pipeline.ranks.horovod import nccl_built
from pipeline.ranks.local import LocalRanks, start_ranks
from pipeline.system.failure import TrainingError
from pipeline.system.launched import Engine
from pipeline.system.machine import available_cores, end_with_parent
from pipeline.system.memory import keep_freed_memory

Kind = Literal["cpu", "cuda"]

# After 30 s, Horovod's default, a rank that was stopped in the middle of a message gives up.
_STOPPED_SEC = "86400"


class Processes:
    """The processes of `jobs`, which run only during a request."""

    def __init__(self, jobs: Sequence[LocalRanks]) -> None:
        self._jobs = jobs
        self._processes = [process for job in jobs for process in job.processes]

    def ask(self, **task: Any) -> list[dict[str, Any]]:
        """Gives every process the same task and returns their answers, in order.

        Raises `TrainingError` when one has ended.
        """
        self._signal(signal.SIGCONT)
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):  # it has ended, as it will not answer
                print(json.dumps(task), file=process.stdin, flush=True)
        answers = [_answer(process) for process in self._processes]
        self._signal(signal.SIGSTOP)
        return answers

    def end(self) -> None:
        """Kills all. They hold nothing worth saving, and one may wait for another."""
        self._signal(signal.SIGKILL)
        for job in self._jobs:
            job.stop()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)


def start(
    module: str, arguments: Sequence[str], ranks: int, engine: Engine = "horovod"
) -> LocalRanks:
    """Starts `python -m module arguments...` on each rank, one thread each, to await requests."""
    return start_ranks(
        [sys.executable, "-m", module, *arguments],
        ranks,
        {"HOROVOD_GLOO_TIMEOUT_SECONDS": _STOPPED_SEC, **environment(), "OMP_NUM_THREADS": "1"},
        engine,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def environment() -> dict[str, str]:
    """This process's environment, in which the modules of this checkout are found first."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def serve(work: Callable[..., Mapping[str, Any]]) -> None:
    """Serves requests in such a process: `work` gets each task by name and returns the answer."""
    # A stopped process would not notice that the benchmark was killed: the kernel does.
    end_with_parent()
    for line in sys.stdin:
        print(json.dumps(work(**json.loads(line))), flush=True)


def own_device(kind: Kind, number: int) -> torch.device:
    """Sets up such a process as a training does: one thread, on CPUs the memory that it frees kept,
    and on GPUs the one of that number as the current one."""
    torch.set_num_threads(1)
    if kind == "cpu":
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def installed_engines() -> list[Engine]:
    """What ranks can communicate over here; torch.distributed comes with PyTorch."""
    return ["horovod", "torch"] if importlib.util.find_spec("horovod") else ["torch"]


def pick_kind(
    choice: Literal["auto", "cpu", "cuda"], ranks: int, engines: Sequence[Engine] = ("horovod",)
) -> Kind:
    """The device kind for `ranks` ranks on this machine over any of `engines`.

    Raises ValueError for "cuda" without a GPU for each rank or without NCCL, and for more ranks
    than cores.
    """

    def has_nccl() -> bool:
        return ranks == 1 or "horovod" not in engines or nccl_built()

    if choice == "cuda":
        pick_device(choice)
        if ranks > torch.cuda.device_count():
            raise ValueError(
                f"{ranks} ranks need as many GPUs, and there are {torch.cuda.device_count()}; "
                "lower --ranks or use --device=cpu"
            )
        if not has_nccl():
            raise ValueError(
                "Horovod was built without NCCL (see horovodrun --check-build); use --device=cpu"
            )
        return "cuda"
    enough = torch.cuda.is_available() and torch.cuda.device_count() >= ranks
    if choice == "auto" and enough and has_nccl():
        return "cuda"
    cores = available_cores()
    if ranks > cores:
        raise ValueError(
            f"{ranks} ranks on {cores} cores would measure how they share cores; lower --ranks to "
            f"at most {cores}"
        )
    return "cpu"


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise TrainingError(
            f"process {process.pid} of the benchmark ended early with code {process.wait()}; its "
            "own error is above"
        )
    answer: dict[str, Any] = json.loads(line)
    return answer
