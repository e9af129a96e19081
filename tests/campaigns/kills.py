"""Kills trainings at random moments until each has finished, and compares it with one that nothing
interrupted: weights, momentum, history and metrics, bit for bit.

    python tests/campaigns/kills.py --seed=1 --minutes=30

Every start of a run is on one, two or four ranks of either engine, as chance has it, since all have
the same bits. It is ended by SIGKILL of one rank or of all, at a random time or in a random file
operation below the run's folder (before it, or half way through), or by SIGTERM or SIGUSR1, unless
it has finished by then.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import sys
import time
from functools import cache
from pathlib import Path

from campaign import Job, Options, Record, environment, run
from nursery import KILL, KILL_HALF_WAY, Fault, Nursery

from pipeline.system.launched import Engine

VARIANTS: dict[str, tuple[str, ...]] = {
    "folders": (),
    "saves": ("--run.checkpoint_every_steps=1", "--run.keep_checkpoints=2"),
    "seldom": ("--run.checkpoint_every_steps=5", "--run.keep_checkpoints=1"),
    "no saves inside": ("--run.checkpoint_every_steps=null",),
    "bf16": ("--optim.amp=bf16",),
    "warm-up": ("--schedule.warmup_epochs=1",),
}
"""Options of each kind of run."""

SIZES = (1, 2, 2, 4)
MICRO_BATCH = 2  # the same on any number of ranks, as BN's statistics are its own
OF_A_RANK = ("window", "rank_statistics")
"""What a checkpoint holds for each rank of those that saved it."""
STARTS = 20  # after which a run may go on undisturbed


def argv(data: Path, runs: Path, name: str, variant: str) -> list[str]:
    """The command line of a run: 19 steps of 8 images, three validations."""
    import jobs

    return [
        *jobs.resumable(data, runs), f"--run.name={name}",
        f"--data.local_batch_size={MICRO_BATCH}", *VARIANTS[variant],
    ]  # fmt: skip


class Kills:
    """The campaign: its data, its nursery, and a whole run of each variant to compare with."""

    def __init__(self, folder: Path, record: Record) -> None:
        from pipeline.prepare.demo import draw_demo
        from pipeline.prepare.options import DemoOptions

        self.folder, self.record = folder, record
        self.data, self.runs = folder / "data", folder / "runs"
        if not self.data.exists():
            draw_demo(DemoOptions(self.data, train=50, val=30))
        self.runs.mkdir(exist_ok=True)
        self.nursery = Nursery(folder)
        self.environment = environment()
        self.whole: dict[str, tuple[Path, int, float]] = {}

    def reference(self, variant: str) -> tuple[Path, int, float]:
        """A run on one rank that nothing interrupts: its folder, its file operations below the
        runs' folder, and how long it takes."""
        if variant not in self.whole:
            name = f"whole-{variant.replace(' ', '-')}"
            trace = self.folder / f"{name}.trace"
            shutil.rmtree(self.runs / name, ignore_errors=True)
            trace.unlink(missing_ok=True)
            began = time.monotonic()
            job = self.start(
                name, variant, 1, "torch", {0: Fault(str(self.runs), trace=str(trace))}
            )
            codes = job.codes()
            assert codes == [0], job.text
            took_sec, lines = time.monotonic() - began, trace.read_text().count("\n")
            self.whole[variant] = self.runs / name, lines, took_sec
        return self.whole[variant]

    def start(
        self, name: str, variant: str, ranks: int, engine: Engine, faults: dict[int, Fault]
    ) -> Job:
        """Starts a run once."""
        line = argv(self.data, self.runs, name, variant)
        log = self.folder / f"{name}.log"
        return Job(self.nursery, line, ranks, engine, log, self.environment, faults)

    def trial(self, chance: random.Random, number: str) -> None:
        """One run, killed until it finishes."""
        variant = chance.choice(list(VARIANTS))
        whole, operations, took_sec = self.reference(variant)
        name = f"run-{number}"
        shutil.rmtree(self.runs / name, ignore_errors=True)
        told = []
        for start in range(STARTS + 1):
            ranks, engine = chance.choice(SIZES), chance.choice(("horovod", "torch"))
            how = "nothing" if start == STARTS else chance.choice(
                ("time",) * 3 + ("file",) * 3 + ("half", "half", "all", "SIGTERM", "SIGUSR1")
            )  # fmt: skip
            faults, victim = dict[int, Fault](), chance.randrange(ranks)
            if how in ("file", "half"):
                victim = 0  # who writes
                at = chance.randint(1, operations)
                faults[0] = Fault(str(self.runs), at, at, KILL if how == "file" else KILL_HALF_WAY)
            job = self.start(name, variant, ranks, engine, faults)
            if how in ("time", "all", "SIGTERM", "SIGUSR1"):
                time.sleep(chance.uniform(0.0, 1.3 * took_sec))
                signals = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
                job.kill(signals.get(how, signal.SIGKILL), None if how == "all" else [victim])
            codes = job.codes()
            told.append(f"{how} of rank {victim} of {ranks} over {engine}: {codes}")
            self._judge(how, codes, job, name, told)
            if codes == [0] * ranks:
                break
        self._compare(name, whole, variant, told)

    def _judge(
        self, how: str, codes: list[int | None], job: Job, name: str, told: list[str]
    ) -> None:
        """Counts how a start ended, and finds what must not be."""
        counts = self.record.counts
        counts["starts"] += 1
        if codes == [0] * len(codes):
            counts["starts that finished the run"] += 1
        elif -9 in codes and how in ("time", "all", "file", "half"):
            counts[f"kills: {how}"] += 1
            counts["kills"] += 1
        elif how in ("SIGTERM", "SIGUSR1") and set(codes) <= {75}:
            counts["stops by a signal"] += 1
        elif how in ("SIGTERM", "SIGUSR1") and set(codes) <= {0, 1, 75, -10, -15, None}:
            counts["signals before the ranks had met"] += 1
        else:
            self.record.find(f"{name}: {told[-1]}\n{job.text[-3000:]}")
        if None in codes and not re.search("^order of epoch", job.text, re.M):
            counts["ranks that waited for one that was killed before all had met"] += 1
        elif None in codes:
            self.record.find(f"{name}: a rank had to be killed: {told[-1]}\n{job.text[-3000:]}")
        if "Traceback" in job.text:
            self.record.find(f"{name}: a traceback: {told[-1]}\n{job.text[-3000:]}")

    def _left(self, run: Path) -> list[str]:
        """What a finished run should not hold."""
        left = [f for f in run.rglob("*") if f.name.startswith(".partial")]
        left += [f for f in (run / "stacks").rglob("*") if f.is_file()]
        left += [run / "failure.txt"] if (run / "failure.txt").exists() else []
        return [str(one.relative_to(run)) for one in left]

    def _compare(self, name: str, whole: Path, variant: str, told: list[str]) -> None:
        """Finds differing bits, and what was left behind."""
        from run_files import metrics, state_differences

        run = self.runs / name
        differing = [one for one in state_differences(run, whole) if one not in OF_A_RANK]
        if not differing and metrics(run) != metrics(whole):
            differing = ["metrics.jsonl"]
        left = self._left(run)
        self.record.counts["runs"] += 1
        if differing:
            self.record.find(f"{name} ({variant}) differs: {differing}; {told}")
        elif left:
            self.record.find(f"{name} ({variant}) left {left}; {told}")
        else:
            self.record.counts["runs with equal bits"] += 1
            shutil.rmtree(run)
            for log in self.folder.glob(f"{name}.log.*"):
                log.unlink()


@cache
def campaign(folder: Path) -> Kills:
    """The campaign of this process."""
    return Kills(folder, Record())


def trial(number: int, chance: random.Random, record: Record, options: Options) -> None:
    """One run."""
    kills = campaign(options.folder)
    kills.record = record
    kills.trial(chance, f"{options.seed}-{number}")


if __name__ == "__main__":
    sys.exit(run(__doc__.split("\n\n")[0], trial))
