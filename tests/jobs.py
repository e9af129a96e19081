"""Starts real jobs for the tests: one process, ranks of our own start, or horovodrun.

Our own start keeps every rank's exit code, which horovodrun hides.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pipeline.ranks.local import LocalRanks, start_ranks
from pipeline.system.launched import Engine

REPOSITORY = Path(__file__).resolve().parent.parent
SABOTEUR = Path(__file__).resolve().parent / "saboteur.py"
PATIENCE_SEC = 120.0

POPEN: dict[str, Any] = {
    "cwd": REPOSITORY,
    "start_new_session": True,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
}

T = TypeVar("T")


def environment(**extra: str) -> dict[str, str]:
    """What a rank under test sees: one thread, this checkout, no launcher's variables."""
    launchers = ("HOROVOD_", "SLURM_", "TORCHELASTIC_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    bin_folder = str(Path(sys.executable).parent)
    return clean | {
        "PYTHONPATH": str(REPOSITORY),
        "PATH": bin_folder + os.pathsep + clean["PATH"],
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    } | extra  # fmt: skip


def command_module(command: str) -> ModuleType:
    """The module that `python -m command` runs."""
    module = importlib.import_module(command)
    return importlib.import_module(f"{command}.__main__") if hasattr(module, "__path__") else module


class Ranks:
    """Running ranks. `outputs` and `codes` are by rank, once `wait` has returned."""

    def __init__(self, started: LocalRanks) -> None:
        self.processes = started.processes
        self._started = started
        self.outputs: list[str] = []
        self.codes: list[int] = []

    def wait(self, timeout_sec: float = PATIENCE_SEC) -> Ranks:
        """Waits for all ranks; kills what is left after the timeout and fails."""
        end = time.monotonic() + timeout_sec
        try:
            for process in self.processes:
                out, _ = process.communicate(timeout=max(1.0, end - time.monotonic()))
                self.outputs.append(out)
        finally:
            for process in self.processes:
                process.kill()
            self._started.stop()
        self.codes = [process.returncode for process in self.processes]
        return self

    @property
    def text(self) -> str:
        """All ranks' output, rank by rank."""
        return "\n".join(self.outputs)

    def send(self, number: signal.Signals, rank: int) -> None:
        """Signals one rank."""
        self.processes[rank].send_signal(number)


def start(argv: Sequence[str], ranks: int = 1, engine: Engine = "horovod", **env: str) -> Ranks:
    """Starts `python argv...` on each rank: over `engine` from two ranks on, alone for one."""
    return Ranks(start_ranks([sys.executable, *argv], ranks, environment(**env), engine, **POPEN))


def run(argv: Sequence[str], ranks: int = 1, engine: Engine = "horovod", **env: str) -> Ranks:
    """`start` and `wait`."""
    return start(argv, ranks, engine, **env).wait()


def horovodrun(argv: Sequence[str], ranks: int = 2, **env: str) -> subprocess.Popen[str]:
    """Starts `horovodrun -np ranks python argv...`, as a user does."""
    command = ["horovodrun", "-np", str(ranks), sys.executable, *argv]
    return subprocess.Popen(command, env=environment(**env), text=True, **POPEN)


def finish(process: subprocess.Popen[str], timeout_sec: float = PATIENCE_SEC) -> str:
    """The output of a job of `horovodrun`, once it and all its ranks are gone."""
    try:
        return process.communicate(timeout=timeout_sec)[0]
    finally:
        process.kill()  # its ranks follow it


def wait_for(look: Callable[[], T], what: str, timeout_sec: float = PATIENCE_SEC) -> T:
    """What `look` returns as soon as that is true; fails after the timeout."""
    end = time.monotonic() + timeout_sec
    while not (seen := look()):
        assert time.monotonic() < end, f"waited {timeout_sec:g} s for {what}"
        time.sleep(0.02)
    return seen


def train(data: Path, runs: Path, *options: str) -> list[str]:
    """Arguments of a small training: 8 layers at 32 px, global batch 8 as micro-batches of 4."""
    return ["-m", "pipeline.train", *small_settings(data, runs), *options]


def copy_data(data: Path, root: Path) -> Path:
    """The data set without its manifests, which would not notice a file changed in place."""
    return shutil.copytree(data, root, ignore=shutil.ignore_patterns(".trainyard"))


def small_settings(data: Path, runs: Path) -> list[str]:
    """The settings of `train`, for other commands and for tests/saboteur.py."""
    return [
        "--config", "configs/demo.yaml", f"--data.root={data}", f"--run.dir={runs}",
        "--run.name=test", "--model.family=cifar", "--model.depth=8",
        "--model.zero_init_last_norm=true", "--optim.decay_norm_and_bias=false",
        "--data.global_batch_size=8", "--data.local_batch_size=4", "--data.image_size=32",
        "--data.val_resize=36", "--schedule.epochs=2", "--schedule.warmup_epochs=0",
        "--schedule.drop_epochs=[1]", "--run.threads=1", "--data.threads=1",
        "--run.log_every_steps=3", "--run.checkpoint_every_sec=null",
    ]  # fmt: skip


RESUMABLE = ("--schedule.epochs=3", "--schedule.drop_epochs=[1]", "--run.checkpoint_every_steps=2")
"""Options of a run to be interrupted: 19 steps with validations after 7, 13 and 19, a checkpoint
every 2 steps, and lines of metrics that begin before one and end after it."""


def resumable(data: Path, runs: Path) -> list[str]:
    """`small_settings` for a run to be interrupted."""
    return [*small_settings(data, runs), *RESUMABLE]
