"""Images of every format and mode, whole and damaged: `prepare verify` and training must agree.

    python tests/campaigns/zoo.py --seed=1 --minutes=30

A trial lays out some hundred files, of which most are damaged at random. `verify --full` must end
with 0 or 2, a training that excludes bad images must end with 0 and have excluded exactly the
images that verify calls bad, and one that is given verify's list must meet no bad image at all.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from campaign import Options, Record, environment, run

WHOLE, DAMAGED = 60, 180
TRAIN = ("--schedule.epochs=1", "--schedule.drop_epochs=[]", "--data.local_batch_size=8")


@cache
def good_val(folder: Path) -> Path:
    """A validation set without faults."""
    from pipeline.prepare.demo import draw_demo
    from pipeline.prepare.options import DemoOptions

    draw_demo(DemoOptions(folder / "drawn", train=20, val=20))
    return folder / "drawn" / "val"


def lay_out(root: Path, val: Path, chance: random.Random) -> None:
    """Writes the files of a trial, over the classes of `val`."""
    from image_zoo import specimens

    found = specimens(seed=chance.getrandbits(32), mutants=60)
    damaged = [one for one in found if one[0].startswith("mutant-")]
    whole = [one for one in found if not one[0].startswith("mutant-")]
    shutil.copytree(val, root / "val")
    classes = sorted(one.name for one in val.iterdir())
    for name in classes:
        (root / "train" / name).mkdir(parents=True)
    chosen = chance.sample(whole, WHOLE) + chance.sample(damaged, DAMAGED)
    for number, (name, content) in enumerate(chosen):
        place = root / "train" / classes[number % len(classes)] / f"{name}.jpg"
        place.write_bytes(content)


def command(*argv: str) -> tuple[int, str]:
    """The code and the output of `python argv...`."""
    import jobs

    done = subprocess.run(
        [sys.executable, *argv], env=environment(), cwd=jobs.REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
    )  # fmt: skip
    return done.returncode, done.stdout


def train(root: Path, *options: str) -> tuple[int, str, list[int]]:
    """The code and the output of an epoch, and the training images that it excluded."""
    import jobs
    from run_files import newest_checkpoint

    code, text = command(*jobs.train(root, root / "runs", *TRAIN, *options))
    if code != 0:
        return code, text, []
    rows = newest_checkpoint(root / "runs" / "test")["excluded"]["train"]
    shutil.rmtree(root / "runs")
    return code, text, sorted(int(row[0]) for row in rows)


def trial(number: int, chance: random.Random, record: Record, options: Options) -> None:
    """One set of files."""
    root = options.folder / f"set-{options.seed}-{number}"
    shutil.rmtree(root, ignore_errors=True)
    lay_out(root, good_val(options.folder), chance)
    report = root / "report.jsonl"
    verify = ("-m", "pipeline.prepare", "verify", f"--root={root}", "--full", f"--report={report}")
    code, text = command(*verify)
    if code not in (0, 2) or "Traceback" in text:
        record.find(f"{root}: verify ended with {code}\n{text[-3000:]}")
        return
    listed = report.with_suffix(".exclude.json")
    bad = json.loads(listed.read_text())["splits"]["train"]["images"]
    names = [one["path"] for one in map(json.loads, report.read_text().splitlines())]
    record.counts["files"] += WHOLE + DAMAGED
    record.counts["files that verify calls bad"] += len(bad)
    before = len(record.findings)
    for how, wanted in (
        ("--data.bad_images=exclude", bad),
        (f"--data.exclude={listed}", bad),
    ):
        code, text, excluded = train(root, how, "--data.max_excluded=1000")
        record.counts["trainings"] += 1
        if code != 0 or "Traceback" in text:
            record.find(f"{root}: {how} ended with {code}\n{text[-3000:]}")
        elif excluded != sorted(wanted):
            odd = set(excluded) ^ set(wanted)
            record.find(f"{root}: {how}: verify and training differ in {odd}; {names[:3]}")
    if len(record.findings) == before:
        shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(run(__doc__.split("\n\n")[0], trial))
