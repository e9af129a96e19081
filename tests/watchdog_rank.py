"""One rank of a job without torch and Horovod: `python tests/watchdog_rank.py FOLDER RANK DOINGS`.

DOINGS says for each rank, by commas, what it does under a watchdog with a limit of one second. No
rank's engine can tell of its last collectives.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from pipeline.ranks.heartbeat import Heartbeat, Peer
from pipeline.ranks.reports import Limit
from pipeline.ranks.watchdog import Watchdog
from pipeline.train.folder import RunFolder
from pipeline.train.lock import record_hang

LIMIT_SEC = 1.0


def wait(heartbeat: Heartbeat) -> None:
    """Waits for the other ranks for ever."""
    heartbeat.beat("average")
    heartbeat.waiting = True
    time.sleep(60.0)


def stall(heartbeat: Heartbeat) -> None:
    """Hangs in work of its own."""
    heartbeat.beat("data")
    time.sleep(60.0)


def work(heartbeat: Heartbeat) -> None:
    """Continues with work of its own."""
    for _ in range(3000):
        heartbeat.beat("validate")
        time.sleep(0.01)


def freeze(heartbeat: Heartbeat) -> None:
    """Native code holds Python's lock."""
    heartbeat.beat("compute")
    while True:
        ctypes.PyDLL(None).sleep(60)


def pause(heartbeat: Heartbeat) -> None:
    """Is stopped."""
    heartbeat.beat("compute")
    os.kill(os.getpid(), signal.SIGSTOP)


def finish(heartbeat: Heartbeat) -> None:
    """Ends after twice the limit, never long without a beat."""
    for _ in range(20):
        heartbeat.beat("compute")
        time.sleep(LIMIT_SEC / 10)


def toil(heartbeat: Heartbeat) -> None:
    """Does honest work for the others for three times the limit."""
    for _ in range(30):
        heartbeat.beat("index")
        time.sleep(LIMIT_SEC / 10)


def patience(heartbeat: Heartbeat) -> None:
    """Waits for as long for the rank that works."""
    heartbeat.beat("index")
    with heartbeat.waits():
        time.sleep(3 * LIMIT_SEC)


DOINGS = {do.__name__: do for do in (wait, stall, work, freeze, pause, finish, toil, patience)}


def unknown() -> bytes:
    """What an engine that has broken down recorded."""
    raise RuntimeError("the flight recorder is gone")


def met(folder: Path, rank: int, size: int) -> list[Peer]:
    """Puts this rank's process where the others find it, and waits for theirs."""
    (folder / f".peer-{rank}").write_text(str(os.getpid()))
    (folder / f".peer-{rank}").rename(folder / f"peer-{rank}")
    found = [folder / f"peer-{r}" for r in range(size)]
    while not all(file.exists() for file in found):
        time.sleep(0.01)
    here = Peer.here(rank)
    return [Peer(r, here.host, int(file.read_text())) for r, file in enumerate(found)]


def main() -> None:
    """Meets the others, then does its part under a watchdog."""
    folder, rank, doings = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    heartbeat = Heartbeat()
    run, peers = RunFolder(folder), met(folder, rank, len(doings))
    on_hang = partial(record_hang, run, rank, "this-start")
    watchdog = Watchdog(run.stacks, peers, rank, heartbeat, Limit(LIMIT_SEC), on_hang)
    watchdog.last_collectives = unknown
    if rank == 0:
        watchdog.make_folder()
        (folder / "made").touch()
    while not (folder / "made").exists():
        time.sleep(0.01)
    watchdog.open_report()
    heartbeat.beat("start", 12)
    watchdog.start()
    DOINGS[doings[rank]](heartbeat)
    watchdog.close()


if __name__ == "__main__":
    main()
