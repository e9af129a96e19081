"""Damages containers, lists and archives at random, and reads each as a run would.

    python tests/campaigns/containers.py --seed=1 --minutes=30

A trial changes one file in 50 ways. Each must be taken, or refused in one sentence that names the
file, within two gigabytes and a minute.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from functools import cache
from pathlib import Path

from campaign import Options, Record, run
from container_mutations import bounded, containers, mutate, try_reader

EACH = 50


@cache
def campaign(folder: Path) -> dict[str, bytes]:
    """The whole files of every kind, by name in `folder`."""
    logging.disable(logging.CRITICAL)
    return containers(folder)


def trial(number: int, chance: random.Random, record: Record, options: Options) -> None:
    """One file, changed in many ways."""
    contents = campaign(options.folder)
    name = sorted(contents)[number % len(contents)]
    path = options.folder / name
    for _ in range(EACH):
        changed = mutate(contents[name], chance)
        path.write_bytes(changed)
        began = time.monotonic()
        try:
            with bounded():
                found = try_reader(path)
        except Exception as error:
            kept = options.folder / f"finding-{len(record.findings)}"
            kept.write_bytes(changed)
            record.find(f"{name}, kept as {kept}: {type(error).__name__}: {error}")
        else:
            record.counts[found] += 1
        record.counts["changed files"] += 1
        took_ms = int(1000 * (time.monotonic() - began))
        record.counts["longest read, ms"] = max(record.counts["longest read, ms"], took_ms)
    path.write_bytes(contents[name])


if __name__ == "__main__":
    sys.exit(run(__doc__.split("\n\n")[0], trial))
