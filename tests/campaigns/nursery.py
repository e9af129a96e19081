"""Starts trainings in a tenth of the time: each is forked from a process that has imported all.

    with Nursery(folder) as nursery:
        job = nursery.start(argv, environment, log)

The process is `python tests/campaigns/nursery.py`, with faulty.c preloaded; it takes a line of JSON
for every start and gives one for every pid and every end.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

KILL, KILL_HALF_WAY = 0, -1
"""In place of an errno: SIGKILL before, or in the middle of, a file operation."""


@dataclass(frozen=True)
class Fault:
    """What happens to the file operations of a process below `folders`, counted from 1: those from
    `first` to `last` fail with `error`, an errno or one of `KILL` and `KILL_HALF_WAY`. `first` 0:
    none. `trace`: a file that gets the operations, "" for none."""

    folders: str
    first: int = 0
    last: int = 0
    error: int = 0
    trace: str = ""


@dataclass(frozen=True)
class Started:
    """One process and the file that gets its output."""

    pid: int
    log: Path


class Nursery:
    """The process that others are forked from."""

    def __init__(self, folder: Path) -> None:
        """Compiles faulty.c into `folder` and starts it."""
        library, source = folder / "faulty.so", Path(__file__).with_name("faulty.c")
        build = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(build, check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())], cwd=REPOSITORY, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self._heard = b""
        self._codes: dict[int, int] = {}
        self._hear()  # that it is ready

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def start(
        self, argv: Sequence[str], environment: Mapping[str, str], log: Path, fault: Fault | None
    ) -> Started:
        """Starts `python -m pipeline.train argv...`."""
        fate = asdict(fault) if fault else None
        order = {"argv": list(argv), "env": dict(environment), "log": str(log), "fault": fate}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        while True:
            line = self._hear()
            if "started" in line:
                self._codes.pop(line["started"], None)  # of an earlier process of that number
                return Started(line["started"], log)
            self._codes[line["ended"]] = line["code"]

    def code(self, pid: int, timeout_sec: float) -> int | None:
        """The exit code of a process, negative for a signal; None if it has not ended by then."""
        end = time.monotonic() + timeout_sec
        while pid not in self._codes:
            left = end - time.monotonic()
            if b"\n" not in self._heard and (
                left <= 0 or not select.select([self._process.stdout], [], [], left)[0]
            ):
                return None
            line = self._hear()
            self._codes[line["ended"]] = line["code"]
        return self._codes[pid]

    def _hear(self) -> dict[str, int]:
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            more = self._process.stdout.read(65536)
            assert more, "the nursery has died"
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        found: dict[str, int] = json.loads(line)
        return found


def become(order: dict) -> None:
    """Turns this fork into the process that was asked for, and runs it."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(order["env"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if fault := order["fault"]:
        ctypes.CDLL(None).faulty_arm(
            os.fsencode(fault["folders"]), ctypes.c_long(fault["first"]),
            ctypes.c_long(fault["last"]), fault["error"], os.fsencode(fault["trace"]),
        )  # fmt: skip
    from pipeline.system.failure import run_command
    from pipeline.train.__main__ import main

    sys.argv = ["pipeline.train", *order["argv"]]
    run_command(main, order["argv"])


def ended(pid: int, status: int) -> None:
    """Tells of an end."""
    print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


def serve() -> None:
    """Forks a process for every line of stdin; returns in the fork only, with what it shall be."""
    import horovod.torch  # noqa: F401
    import torch.distributed
    import torch.utils.tensorboard  # noqa: F401

    import pipeline.ranks.horovod
    import pipeline.ranks.torch_engine
    import pipeline.train.run  # noqa: F401

    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print(json.dumps({"ready": len(os.listdir("/proc/self/task"))}), flush=True)
    while True:
        for readable in select.select([0, wake], [], [])[0]:
            if readable == wake:
                os.read(wake, 512)
                while (found := _reaped()) is not None:
                    ended(*found)
                continue
            line = sys.stdin.buffer.readline()  # there is one at a time: the other side waits
            if not line:
                sys.exit(0)
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                return become(json.loads(line))
            print(json.dumps({"started": pid}), flush=True)


def _reaped() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


if __name__ == "__main__":
    serve()
