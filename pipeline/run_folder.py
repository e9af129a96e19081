"""A run's folder as one job's own: its lock, and the first cause of a failure."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.distributed import World
from pipeline.failure import (
    FellWithPeer,
    PeerLost,
    Reported,
    Stopped,
    TrainingError,
    forget_last_end,
    record_first_cause,
)
from pipeline.monitor import log_to_file
from pipeline.watchdog import forget_stacks


@contextlib.contextmanager
def locked(folder: Path, world: World) -> Iterator[Path]:
    """Collective. Makes the run's folder and holds it until the job ends."""
    held: list[Any] = []

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115  (held till the end)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"the run in {folder} is in use by {file.read().strip() or 'another job'}; wait "
                "for it or choose another run.name"
            ) from error
        except OSError as error:
            raise ValueError(
                f"the run in {folder} cannot be locked: {error.strerror}; its file system has no "
                "locks (Lustre: mount it with -o flock), so set run.dir to another one"
            ) from error
        file.truncate(0)
        job_id = os.environ.get("SLURM_JOB_ID")
        file.write(
            f"process {os.getpid()} on {socket.gethostname()}"
            + (f", Slurm job {job_id}" if job_id else "")
            + time.strftime(", since %Y-%m-%d %H:%M:%S\n")
        )
        file.flush()
        held.append(file)

    world.on_rank0(take)
    try:
        yield folder
    finally:
        for file in held:
            file.close()


@contextlib.contextmanager
def first_cause_kept(run_dir: Path, world: World) -> Iterator[None]:
    """Keeps the first cause of a failure in the run's `failure.txt`."""
    if world.rank == 0:
        forget_last_end(run_dir)
        forget_stacks(run_dir)
        log_to_file(run_dir)
        world.on_failure = lambda message: record_first_cause(run_dir, message)
    try:
        yield
    except (Stopped, Reported, KeyboardInterrupt):
        raise  # what was reported is recorded already, before any rank left
    except PeerLost as error:
        if not record_first_cause(run_dir, str(error)):
            raise FellWithPeer(
                f"rank {world.rank} ends because another rank failed; {run_dir}/failure.txt has "
                "the cause"
            ) from error
        raise
    except Exception as error:
        known = isinstance(error, TrainingError | ValueError)
        cause = str(error) if known else f"{type(error).__name__}: {error}"
        record_first_cause(run_dir, f"rank {world.rank}: {cause}")
        raise
