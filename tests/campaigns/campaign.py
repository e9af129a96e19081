"""What the campaigns share: their options, the loop that runs until time or count is up, the
record of what was found, and trainings that are interrupted."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nursery import Fault, Nursery, Started

from pipeline.ranks.local import Server, open_rendezvous
from pipeline.system.launched import Engine

PATIENCE_SEC = 120.0


@dataclass
class Record:
    """What a campaign has seen: how often each outcome, and every finding in words."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def find(self, what: str) -> None:
        """Notes something that should not be."""
        self.findings.append(what)
        print(f"FOUND: {what}", flush=True)


@dataclass(frozen=True)
class Options:
    """What trials need of the command line. `folder` keeps what a finding needs."""

    seed: int
    folder: Path


class AllDone(Exception):
    """A campaign has tried all there is."""


Trial = Callable[[int, random.Random, Record, Options], None]
"""Gets its number, and the random numbers that seed and number determine."""


def run(about: str, trial: Trial) -> None:
    """Runs `trial` again and again until the time or the count is up, or it raises `AllDone`; exits
    with 1 if anything was found. Trial n of a seed is the same in every call."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="when to begin no more trials")
    parser.add_argument("--count", type=int, default=10**9, help="how many trials at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--folder", type=Path, help="where to work (default: a new one)")
    parser.add_argument("--json", type=Path, help="write what was seen to this file")
    given = parser.parse_args()
    folder = Path(given.folder or tempfile.mkdtemp(prefix="campaign-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(given.seed, folder)
    record, began, number = Record(), time.monotonic(), given.first
    while number < given.first + given.count and time.monotonic() < began + 60 * given.minutes:
        try:
            trial(number, random.Random(f"{given.seed} {number}"), record, options)
        except AllDone:
            break
        number += 1
        if number % 20 == 0:
            print(f"{number}: {dict(sorted(record.counts.items()))}", flush=True)
    took_min = (time.monotonic() - began) / 60
    trials = number - given.first
    for name, times in sorted(record.counts.items()):
        print(f"{times:8,}  {name}")
    print(f"{trials:,} trials in {took_min:.1f} minutes, {len(record.findings)} findings")
    if given.json is not None:
        facts = {
            "campaign": Path(sys.argv[0]).stem, "seed": given.seed, "first": given.first,
            "trials": trials, "minutes": round(took_min, 1), "counts": dict(record.counts),
            "findings": record.findings, "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        }  # fmt: skip
        given.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if not record.findings:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if record.findings else 0)


class Job:
    """One start of a training on several ranks, forked from a nursery."""

    def __init__(
        self, nursery: Nursery, argv: Sequence[str], ranks: int, engine: Engine, log: Path,
        environment: Mapping[str, str], faults: Mapping[int, Fault] | None = None,
    ) -> None:  # fmt: skip
        self._nursery, self._server = nursery, None
        server: Server | None = None
        if ranks > 1:
            server = open_rendezvous(engine, "127.0.0.1", [("localhost", ranks)])
            self._server = server
        loopback = {"HOROVOD_GLOO_IFACE": "lo", "GLOO_SOCKET_IFNAME": "lo"}
        self.ranks: list[Started] = []
        for rank in range(ranks):
            env = dict(environment) | (loopback | server.environment(rank) if server else {})
            own = log.with_name(f"{log.name}.{rank}")
            own.unlink(missing_ok=True)
            self.ranks.append(nursery.start(argv, env, own, (faults or {}).get(rank)))

    def kill(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Sends a signal to some ranks, or to all."""
        for rank in range(len(self.ranks)) if ranks is None else ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.ranks[rank].pid, number)

    def codes(self, timeout_sec: float = PATIENCE_SEC) -> list[int | None]:
        """The exit codes by rank. Once one rank has failed the others get the time that a launcher
        gives them; what is left after that, or after the timeout (None), is killed."""
        end = time.monotonic() + timeout_sec
        pids, found = [one.pid for one in self.ranks], dict[int, int | None]()
        while len(found) < len(pids) and time.monotonic() < end:
            for pid in pids:
                if pid not in found and (code := self._nursery.code(pid, 0.02)) is not None:
                    found[pid] = code
                    if code != 0:
                        end = min(end, time.monotonic() + 15.0)
        for pid in pids:
            if pid not in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
                self._nursery.code(pid, 10.0)
        if self._server is not None:
            self._server.stop()
        return [found.get(pid) for pid in pids]

    @property
    def text(self) -> str:
        """The output of all ranks, rank by rank."""
        return "\n".join(r.log.read_text(errors="replace") for r in self.ranks if r.log.exists())


def environment() -> dict[str, str]:
    """What a rank sees: one thread, this checkout, no launcher's variables."""
    import jobs

    return {k: v for k, v in jobs.environment().items() if k != "LD_PRELOAD"}
