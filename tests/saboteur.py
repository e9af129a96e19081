"""Runs `pipeline.train` with one fault built in: `python tests/saboteur.py FAULT [options...]`.

FAULT is `what:where:rank`, rank a number or `all`. A killed rank dies by SIGKILL, as by the
kernel's out-of-memory killer:
  kill-step:5:1       before step 5 is computed, on rank 1
  kill-save:2:0       inside the second write of a checkpoint, when the file is half written
  kill-validate:1:1   inside the first validation
  nan-loss:4:0        the loss of step 4 is NaN
  stop-step:5:1       SIGTERM reaches rank 1 while it computes step 5
  slow-step:0.2:all   every step takes 0.2 s longer
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from typing import Any


def die() -> None:
    """Ends this process as the kernel would, and says when."""
    os.write(2, f"saboteur: killed at {time.time()}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_half(descriptor: int) -> None:
    """Ends this process when half of an open file has reached the disk."""
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    die()


def at_count(function: Callable[..., Any], count: int, fault: Callable[..., None]) -> Any:
    """`function`, which runs `fault` first in its `count`-th call, with the same arguments."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            fault(*args, **kwargs)
        return function(*args, **kwargs)

    return counted


def install(what: str, where: str) -> None:
    """Builds the fault into this process."""
    from pipeline import checkpoint, engine

    real_step, real_loss = engine.train_step, engine.F.cross_entropy
    if what == "kill-step":

        def step(job: Any, *rest: Any) -> Any:
            if job.progress.step == int(where):
                die()
            return real_step(job, *rest)

        engine.train_step = step
    elif what == "stop-step":

        def step(job: Any, *rest: Any) -> Any:
            if job.progress.step == int(where):
                os.kill(os.getpid(), signal.SIGTERM)
            return real_step(job, *rest)

        engine.train_step = step
    elif what == "slow-step":

        def step(job: Any, *rest: Any) -> Any:
            time.sleep(float(where))
            return real_step(job, *rest)

        engine.train_step = step
    elif what == "nan-loss":
        calls = {"step": -1}

        def step(job: Any, *rest: Any) -> Any:
            calls["step"] = job.progress.step
            return real_step(job, *rest)

        def loss(*args: Any, **kwargs: Any) -> Any:
            value = real_loss(*args, **kwargs)
            return value * float("nan") if calls["step"] == int(where) else value

        engine.train_step, engine.F.cross_entropy = step, loss
    elif what == "kill-save":
        # The content is on its way to the disk, the name is not there yet.
        real_sync, of_file = os.fsync, at_count(os.fsync, int(where), die_with_half)

        def sync(descriptor: int) -> None:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            (of_file if is_file else real_sync)(descriptor)

        checkpoint.os.fsync = sync
    elif what == "kill-validate":
        engine.validate = at_count(engine.validate, int(where), lambda *_: die())
    else:
        raise SystemExit(f"no fault is called {what}")


def main() -> None:
    """Installs the fault on its rank, then trains."""
    what, where, rank = sys.argv[1].split(":")
    from pipeline.failure import run_command
    from pipeline.train import main as train

    if rank in ("all", os.environ.get("HOROVOD_RANK", "0")):
        install(what, where)
    run_command(train, sys.argv[2:])


if __name__ == "__main__":
    main()
