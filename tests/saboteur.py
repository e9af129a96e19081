"""Runs `pipeline.train` with one fault built in: `python tests/saboteur.py FAULT [options...]`.

FAULT is `what:where:rank`, rank a number or `all`. A killed rank dies by SIGKILL, as by the
kernel's out-of-memory killer:
  kill-step:5:1       before step 5 is computed, on rank 1, when what it has saved is on the disk
  kill-save:2:0       inside the second write of a checkpoint, when the file is half written
  kill-writing:5:0    before step 5 is computed, when the file of the checkpoint saved last is half
                      written; checkpoints of step 4 and later never reach the disk
  sleep-save:2:0      the second write of a checkpoint never ends
  kill-validate:1:1   inside the first validation
  kill-average:5:1    inside the fifth average of gradients, which the others wait for
  nan-loss:4:0        the loss of step 4 is NaN
  stop-step:5:1       SIGTERM reaches rank 1 while it computes step 5
  slow-step:0.2:all   every step takes 0.2 s longer
  pause-step:5:1      SIGSTOP holds rank 1 before step 5 is computed
  sleep-loader:5:1    the loader sleeps for ever while it prepares its fifth batch
  never-start:99:1    rank 1 sleeps for 99 s before it looks for the others
  sleep-index:1:1     rank 1 sleeps for ever when it opens its first image set
  slow-index:9:0      rank 0 takes 9 s longer to open its first image set, and gets on all the while
  sleep-largest:1:1   rank 1 sleeps for ever when it decodes the largest images of its first set
  sleep-end:1:1       rank 1 sleeps for ever when it sums up
  sleep-exit:3:1      rank 1 sleeps for ever on its way out; each rank gives that 3 s
"""

from __future__ import annotations

import atexit
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def die() -> None:
    """Ends this process as the kernel would, and says when."""
    os.write(2, f"saboteur: killed at {time.time()}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_half(descriptor: int) -> None:
    """Ends this process when half of an open file has reached the disk."""
    os.truncate(f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_size // 2)
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


def sleep_for_ever(*_: Any, **__: Any) -> None:
    """Never comes back; its name is in the stack."""
    while True:
        time.sleep(60.0)


def die_without_a_write() -> None:
    """Which would be lost or not, as it happens: what comes of that is the fault kill-writing."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    die()


AT_STEP: dict[str, Callable[[], object]] = {
    "kill-step": die_without_a_write,
    "stop-step": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "pause-step": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}
"""What happens before a given step is computed."""


def install(what: str, where: str) -> None:
    """Builds the fault into this process."""
    if what == "never-start":
        time.sleep(float(where))
    elif what == "sleep-exit":
        from pipeline.system import failure

        failure.END_SEC = float(where)
        atexit.register(sleep_for_ever)
    elif what in AT_START:
        install_at_start(what, where)
    elif what in AT_STEP or what in ("slow-step", "nan-loss"):
        install_in_step(what, where)
    else:
        install_elsewhere(what, int(where))


AT_START = ("sleep-index", "slow-index", "sleep-largest", "sleep-end")


def install_at_start(what: str, where: str) -> None:
    """Builds in a fault before the first step or after the last."""
    from pipeline.data import opening
    from pipeline.train import run

    def slowly(*_: Any, progress: Callable[[], object], **__: Any) -> None:
        end = time.monotonic() + float(where)
        while time.monotonic() < end:
            progress()
            time.sleep(0.1)

    if what == "slow-index":
        opening.open_manifest = at_count(opening.open_manifest, 1, slowly)
        return
    owner, name = {
        "sleep-index": (opening, "open_manifest"),
        "sleep-largest": (run, "decode_largest"),
        "sleep-end": (run, "_sum_up"),
    }[what]
    setattr(owner, name, at_count(getattr(owner, name), int(where), sleep_for_ever))


def install_in_step(what: str, where: str) -> None:
    """Builds a fault into the steps of training."""
    from torch.nn import functional

    from pipeline.train import trainer

    real_step, real_loss, now = trainer.Trainer.train_step, functional.cross_entropy, -1

    def step(self: Any, *rest: Any) -> Any:
        nonlocal now
        now = self.state.step
        if what == "slow-step":
            time.sleep(float(where))
        elif what in AT_STEP and now == int(where):
            AT_STEP[what]()
        return real_step(self, *rest)

    def loss(*args: Any, **kwargs: Any) -> Any:
        value = real_loss(*args, **kwargs)
        return value * float("nan") if now == int(where) else value

    trainer.Trainer.train_step = step
    if what == "nan-loss":
        functional.cross_entropy = loss


def install_elsewhere(what: str, count: int) -> None:
    """Builds in a fault that comes when something is done for the `count`-th time."""
    from pipeline.data import stream
    from pipeline.ranks import buckets, gradients
    from pipeline.train import validation

    if what in ("kill-save", "sleep-save"):
        # The content is on its way to the disk, the name is not there yet.
        fault = die_with_half if what == "kill-save" else sleep_for_ever
        replace_sync(at_count(os.fsync, count, fault))
    elif what == "kill-writing":
        install_kill_writing(count)
    elif what == "kill-validate":
        validation.validate = at_count(validation.validate, count, lambda *_: die())
    elif what == "kill-average":
        for averager in (gradients.OrderedGradients, buckets.BucketedGradients):
            averager.synchronize = at_count(averager.synchronize, count, lambda *_: die())
    elif what == "sleep-loader":
        # Not the loaders of validation and of the checks before the first step.
        stream.TrainStream.select = at_count(stream.TrainStream.select, count, sleep_for_ever)
    else:
        raise SystemExit(f"no fault is called {what}")


def replace_sync(of_checkpoint: Callable[[int], object]) -> None:
    """Gives the files of checkpoints another `os.fsync`."""
    real_sync = os.fsync

    def sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        (of_checkpoint if re.search(r"/checkpoints/.*-step-", path) else real_sync)(descriptor)

    os.fsync = sync


def install_kill_writing(at_step: int) -> None:
    """Builds in a kill before step `at_step`, while the write before it is under way."""
    from pipeline.train import trainer

    real_step, real_sync = trainer.Trainer.train_step, os.fsync
    now, writing = 0, queue.SimpleQueue[int]()

    def sync(descriptor: int) -> None:
        if now < at_step - 1:
            return real_sync(descriptor)
        writing.put(descriptor)
        return sleep_for_ever()

    def step(self: Any, *rest: Any) -> Any:
        nonlocal now
        if self.state.step == at_step:
            die_with_half(writing.get(timeout=60.0))
        found = real_step(self, *rest)
        if self.state.step + 1 < at_step:
            self.writer.wait()  # those before are on the disk
        now = self.state.step + 1
        return found

    trainer.Trainer.train_step = step
    replace_sync(sync)


def main() -> None:
    """Installs the fault on its rank, then trains."""
    what, where, rank = sys.argv[1].split(":")
    from pipeline.system.failure import run_command
    from pipeline.system.launched import launched_rank
    from pipeline.train.__main__ import main as train

    if rank in ("all", str(launched_rank())):
        install(what, where)
    run_command(train, sys.argv[2:])


if __name__ == "__main__":
    main()
