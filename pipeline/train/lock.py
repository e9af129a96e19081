"""A job's lock on its run's folder, and the record of the first cause if it fails."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.system import files
from pipeline.system.console import log_to_file
from pipeline.system.failure import (
    FellWithPeer,
    PeerLost,
    Reported,
    Stopped,
    in_words,
    say_error,
)
from pipeline.train.access import explained, make_usable
from pipeline.train.folder import Holder, RunFolder

if TYPE_CHECKING:
    from pipeline.ranks.world import World  # brings torch

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_ASK_SEC = 2.0

log = logging.getLogger("trainyard")


@contextlib.contextmanager
def locked(folder: Path, world: World) -> Iterator[RunFolder]:
    """Collective. Makes the run's folder and holds it until the job ends."""
    run, held = RunFolder(folder), contextlib.ExitStack()

    def take() -> None:
        make_usable(run)
        try:
            lock = held.enter_context(files.locked(run.lock, wait=False))
        except BlockingIOError as error:
            raise ValueError(
                f"the run in {folder} is in use by {run.holder() or 'another job'}; wait for it or "
                "choose another run.name"
            ) from error
        except OSError as error:
            if error.filename is not None or error.errno not in _NO_LOCKS:
                raise  # the file, not its lock; or a file system that does not answer now
            raise ValueError(
                f"the run in {folder} cannot be locked: {error.strerror}; its file system has no "
                "locks (Lustre: mount it with -o flock), so set run.dir to another one"
            ) from error
        os.ftruncate(lock, 0)
        os.write(lock, Holder.here(world.start).as_json.encode())

    with held:
        world.on_rank0(explained(run)(take))
        yield run


@contextlib.contextmanager
def first_cause_kept(run: RunFolder, world: World) -> Iterator[None]:
    """Records the first cause of a failure in the run's folder, unless it is another start's by
    then: a rank that was stopped for long wakes up in a job that is over."""

    def begin() -> None:
        world.on_failure = lambda cause: run.is_of(world.start) and run.record_first_cause(cause)
        run.forget_last_end()
        log_to_file(run.log)
        log.handlers[-1].addFilter(_IsOf(run, world.start))

    world.on_rank0(explained(run)(begin))
    try:
        yield
    except (Stopped, Reported, KeyboardInterrupt):
        raise  # a reported error is already recorded, before any rank left
    except Exception as error:
        if not run.is_of(world.start):
            raise FellWithPeer(_over(run, world.rank)) from error
        if isinstance(error, PeerLost):
            if not run.record_first_cause(str(error)):
                raise FellWithPeer(
                    f"rank {world.rank} ends because another rank failed; {run.failure} has the "
                    "cause"
                ) from error
            raise
        run.record_first_cause(f"rank {world.rank}: {in_words(error)}")
        raise


class _IsOf:
    """Lets lines through while no other start has taken the run. Asks its file system at most once
    in `_ASK_SEC`: often enough, as the run is taken only from a host that was away for longer. An
    error, which may be about this very thing, asks anew."""

    def __init__(self, run: RunFolder, start: str) -> None:
        self._run, self._start = run, start
        self._answer, self._asked_at = True, -math.inf

    def __call__(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if record.levelno >= logging.ERROR or now - self._asked_at >= _ASK_SEC:
            self._asked_at, self._answer = now, self._run.is_of(self._start)
        return self._answer


def _over(run: RunFolder, rank: int) -> str:
    return (
        f"rank {rank} ends because its start of the job is over: the run in {run.path} is "
        f"now that of {run.holder()}"
    )


def record_hang(run: RunFolder, rank: int, start: str, cause: str) -> None:
    """Records why a hung job ends, and reports it unless another rank did, or another start has
    taken the run."""
    if not run.is_of(start):
        log.error("%s", _over(run, rank))
        return
    if not run.record_first_cause(cause):
        return
    if rank != 0:  # the writer of log.txt; it may be the one that hangs
        with contextlib.suppress(OSError):
            log_to_file(run.log)
    say_error(cause)
