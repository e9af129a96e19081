"""Changes every byte of a checkpoint, one at a time: each must be refused, or change nothing.

    python tests/campaigns/flips.py --seed=1 --minutes=30

A trial changes each byte of a stretch of the file, by a mask that chance chooses: one bit or more.
The checkpoint is one of a real run. With --first a campaign goes on where another stopped.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from campaign import AllDone, Options, Record, environment, run

STRETCH = 500


@dataclass
class Flips:
    """A checkpoint, its content, and the file in which its bytes are changed."""

    path: Path
    whole: bytes
    content: dict[str, Any]


@cache
def campaign(folder: Path) -> Flips:
    """The newest checkpoint of a run of 8 layers."""
    import subprocess

    import jobs

    from pipeline.prepare.demo import draw_demo
    from pipeline.prepare.options import DemoOptions
    from pipeline.train.checkpoint import read_verified

    draw_demo(DemoOptions(folder / "data", train=50, val=30))
    command = [sys.executable, *jobs.train(folder / "data", folder / "runs")]
    subprocess.run(command, check=True, env=environment(), cwd=jobs.REPOSITORY, capture_output=True)
    newest = max((folder / "runs" / "test" / "checkpoints").glob("step-*.pt"))
    path = folder / "changed.pt"
    path.write_bytes(newest.read_bytes())
    return Flips(path, newest.read_bytes(), read_verified(path))


def trial(number: int, chance: random.Random, record: Record, options: Options) -> None:
    """The bytes of stretch `number`."""
    from run_files import differences

    from pipeline.train.checkpoint import read_verified

    flips = campaign(options.folder)
    record.counts["bytes of the file"] = len(flips.whole)
    start = number * STRETCH
    if start >= len(flips.whole):
        raise AllDone
    with open(flips.path, "r+b", buffering=0) as file:
        for at in range(start, min(start + STRETCH, len(flips.whole))):
            mask = 1 << chance.randrange(8) if chance.random() < 0.7 else chance.randint(1, 255)
            file.seek(at)
            file.write(bytes([flips.whole[at] ^ mask]))
            try:
                found = read_verified(flips.path)
            except ValueError as error:
                record.counts["refused"] += 1
                if str(flips.path) not in str(error):
                    record.find(f"byte {at} ^ {mask:#x}: the refusal names no file: {error}")
            except Exception as error:
                record.find(f"byte {at} ^ {mask:#x}: {type(error).__name__}: {error}")
            else:
                record.counts["read, content equal"] += 1
                if different := differences(found, flips.content):
                    record.find(f"byte {at} ^ {mask:#x}: read, but differs: {different[:3]}")
            file.seek(at)
            file.write(flips.whole[at : at + 1])


if __name__ == "__main__":
    sys.exit(run(__doc__.split("\n\n")[0], trial))
