"""One run under a real Slurm, start after start: the script for 64 GPUs, at two nodes of one rank
with a tiny network on the CPU.

The starts follow one another in one run directory, as they would on a cluster; each leaves a record
that tests look at.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import jobs
from jobs import wait_for
from run_files import checkpoint_steps, metrics, newest_checkpoint
from slurm_cluster import Cluster, processes

ENDLESS = 1000
"""Epochs of a start that something ends."""


@dataclass(frozen=True)
class Start:
    """What one start of the job left behind."""

    state: str
    """Slurm's word for it."""
    exit_code: str
    restarts: int
    log: str
    """What this start wrote into the job's log."""
    first_step: int
    """Step of the newest checkpoint before it."""
    last_step: int
    """Step of the newest checkpoint after it, which was read and is whole."""
    seen_step: int
    """The last step in the metrics."""
    said: str
    """stopped.txt"""
    cause: str
    """failure.txt"""
    left: list[int]
    """Processes of the run that still ran soon after."""


class Story:
    """Submits one run again and again. `options` are the launcher's, for every start."""

    def __init__(self, slurm: Cluster, data: Path, folder: Path, *options: str) -> None:
        self.slurm = slurm
        self.path = folder / "runs" / "test"
        self.log = folder / "job.log"
        self._settings = [
            *jobs.small_settings(data, folder / "runs")[2:],  # the script has its own --config
            "--data.dataset=null", "--optim.base_lr=0.4",
            "--data.area=[0.35,1.0]", "--run.log_every_steps=1",
            "--run.checkpoint_every_steps=3", *options,
        ]  # fmt: skip
        self.job = ""
        self._first = self._log_from = 0

    def submit(self, *sbatch: str, epochs: int = ENDLESS, doctor: bool = False, **env: str) -> None:
        """sbatch of the script itself, small, and waits until the run is on its way."""
        own = [option for option in sbatch if option.startswith("--launch.")]
        sbatch = tuple(option for option in sbatch if option not in own)
        script = jobs.REPOSITORY / "slurm" / "resnet152_64gpu.sh"
        self.job = self.slurm.submit(
            "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1",
            f"--output={self.log}", *sbatch, str(script), *self._settings, *own,
            f"--launch.doctor={str(doctor).lower()}", f"--schedule.epochs={epochs}",
            cwd=jobs.REPOSITORY, **env,
        )  # fmt: skip
        self._remember()

    def _remember(self) -> None:
        self._first = max(checkpoint_steps(self.path), default=0)
        self._log_from = len(self.text)

    @property
    def text(self) -> str:
        """The job's log so far."""
        return self.log.read_text() if self.log.exists() else ""

    def under_way(self) -> None:
        """Waits for a checkpoint of this start, and steps after it."""
        wait_for(lambda: checkpoint_steps(self.path)[-1:] > [self._first], "a checkpoint")
        wait_for(lambda: self.seen() > checkpoint_steps(self.path)[-1], "a step after it")

    def seen(self) -> int:
        """The last step in the metrics."""
        return max((line["step"] for line in metrics(self.path)), default=0)

    def signal(self, *scancel: str) -> None:
        """scancel with these options on the job."""
        self.slurm.run("scancel", *scancel, self.job)

    def signal_rank(self, number: signal.Signals, rank: int) -> None:
        """SIGKILL to one rank, as by the kernel, or SIGSTOP."""
        for process in processes(str(self.path.parent)):
            try:
                text = b"\0" + Path(f"/proc/{process}/environ").read_bytes()
                command = Path(f"/proc/{process}/cmdline").read_bytes()
            except OSError:
                continue
            numbers = (f"\0{name}={rank}\0".encode() for name in ("HOROVOD_RANK", "RANK"))
            if any(number in text for number in numbers) and b"pipeline.train" in command:
                os.kill(process, number)
                return
        raise AssertionError(f"rank {rank} does not run")

    def ended(self, *states: str) -> Start:
        """Waits for the end of this start and records what it left."""
        state = self.slurm.wait_for_end(self.job, *states)
        marker = str(self.path.parent)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not processes(marker), "the end of all processes", 20)
        shown = self.slurm.job(self.job)
        start = Start(
            state, shown["ExitCode"], int(shown["Restarts"]), self.text[self._log_from :],
            self._first, newest_checkpoint(self.path)["step"], self.seen(),
            self._read("stopped.txt"), self._read("failure.txt"), processes(marker),
        )  # fmt: skip
        self._remember()
        return start

    def _read(self, name: str) -> str:
        file = self.path / name
        return file.read_text() if file.exists() else ""
