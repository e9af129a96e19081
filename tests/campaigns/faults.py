"""Lets one file operation of a training fail, each time another one, and looks at what comes of it.

    python tests/campaigns/faults.py --seed=1 --minutes=30

The operation is one of those below the folders of data and of runs: open, read, write, sync,
rename, stat ... It fails once, five times in a row, or from then on. The run must end with the bits
of one that met no fault, or with one line of error and without a traceback; then the same command
without the fault must reach those bits. So nothing may have been lost, taken for damaged, or
believed.
"""

from __future__ import annotations

import errno
import random
import re
import shutil
import sys
from collections import Counter
from functools import cache
from pathlib import Path

from campaign import Job, Options, Record, run
from kills import Kills
from nursery import Fault

ERRORS = (
    errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EROFS,
    errno.EMFILE, errno.ENOENT, errno.ETIMEDOUT,
)  # fmt: skip
SPANS = {"once": 0, "five in a row": 4, "from then on": 10**9}
VARIANTS = ("folders", "saves", "seldom")
STOPPED = 75


class Faults(Kills):
    """The campaign."""

    @property
    def below(self) -> str:
        """The folders whose operations count."""
        return f"{self.runs}:{self.data}"

    def _begin(self, variant: str, name: str, fault: Fault | None = None) -> tuple[int | None, str]:
        """Runs a training to its end, on one rank."""
        job: Job = self.start(name, variant, 1, "torch", {0: fault} if fault else {})
        return job.codes(60.0)[0], job.text

    def operations(self, variant: str, name: str) -> list[str]:
        """What a run of `variant` that begins as `name` stands does to files, in order."""
        trace = self.folder / "trace"
        trace.unlink(missing_ok=True)
        copy = self.runs / f"{name}-traced"
        shutil.rmtree(copy, ignore_errors=True)
        if (self.runs / name).exists():
            shutil.copytree(self.runs / name, copy)
        self._begin(variant, copy.name, Fault(self.below, trace=str(trace)))
        shutil.rmtree(copy)
        return trace.read_text(errors="replace").splitlines()

    @cache  # noqa: B019  (one campaign in a process)
    def planned(self, variant: str, resumed: bool) -> tuple[list[str], Path | None]:
        """The operations of a run from the beginning, or of one that goes on; and the latter's
        folder to copy."""
        self.reference(variant)
        if not resumed:
            return self.operations(variant, f"none-{variant}"), None
        half = self.runs / f"half-{variant}"
        shutil.rmtree(half, ignore_errors=True)
        job = self.start(half.name, variant, 1, "torch", {})
        while not list(half.glob("checkpoints/step-*[5-9].pt")):
            assert self.nursery.code(job.ranks[0].pid, 0.01) is None, job.text
        job.kill(9)
        job.codes()
        return self.operations(variant, half.name), half

    def fault(self, chance: random.Random, name: str) -> None:
        """One operation fails."""
        variant, resumed = chance.choice(VARIANTS), chance.random() < 0.5
        operations, half = self.planned(variant, resumed)
        kinds = Counter(line.split()[0] for line in operations)
        kind = chance.choice(sorted(kinds))  # a rename is as likely as one of many reads
        places = [n for n, line in enumerate(operations, 1) if line.split()[0] == kind]
        first, number = chance.choice(places), chance.choice(ERRORS)
        span = chance.choice(list(SPANS))
        shutil.rmtree(self.runs / name, ignore_errors=True)
        if half is not None:
            shutil.copytree(half, self.runs / name)
        trace = self.folder / "trace"
        trace.unlink(missing_ok=True)
        code, text = self._begin(
            variant, name, Fault(self.below, first, first + SPANS[span], number, str(trace))
        )
        # Saves are written beside training: the operation of that number may be another one.
        done = trace.read_text(errors="replace").splitlines()
        hit = done[first - 1] if first <= len(done) else "none, as the run had fewer"
        what = (
            f"{name} ({variant}{', resumed' if resumed else ''}): {errno.errorcode[number]} {span} "
            f"in operation {first}: {hit}"
        )
        self._judge_fault(what, span, code, text)
        if code != 0:
            code, text = self._begin(variant, name)
            if code != 0:
                self.record.find(f"{what}: the run does not go on: {code}\n{text[-2000:]}")
                return
        self._compare(name, self.whole[variant][0], variant, [what])

    def _left(self, run: Path) -> list[str]:
        """As for `Kills`, but what could not be removed goes when the run starts again."""
        later = (".partial", "stacks/")
        return [one for one in super()._left(run) if not one.startswith(later)]

    def _judge_fault(self, what: str, span: str, code: int | None, text: str) -> None:
        counts = self.record.counts
        counts[f"faults {span}"] += 1
        counts["the run went on" if code == 0 else f"the run ended with {code}"] += 1
        errors = re.findall(r"^error: .*", text, re.M)
        if code not in (0, 1, 2):
            self.record.find(f"{what}: code {code}\n{text[-2000:]}")
        elif "Traceback" in text or re.search(r"^error: (rank \d+: )?\w+Error:", text, re.M):
            self.record.find(f"{what}: raw\n{text[-2000:]}")
        elif len(errors) != (code != 0):
            self.record.find(f"{what}: {len(errors)} lines of error\n{text[-2000:]}")


@cache
def campaign(folder: Path) -> Faults:
    """The campaign of this process."""
    return Faults(folder, Record())


def trial(number: int, chance: random.Random, record: Record, options: Options) -> None:
    """One fault."""
    faults = campaign(options.folder)
    faults.record = record
    faults.fault(chance, f"fault-{options.seed}-{number}")


if __name__ == "__main__":
    sys.exit(run(__doc__.split("\n\n")[0], trial))
