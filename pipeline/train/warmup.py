"""Ends the warm-up that waits for the training error to fall (`schedule.ErrorWarmup`).

The error is that of fixed windows of steps, counted in whole images over all ranks. It depends on
nothing but the training itself: not on when metrics are logged, on checkpoints or on who counts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.train.schedule import WARMUP_WINDOW_STEPS, ErrorWarmup

if TYPE_CHECKING:
    from pipeline.train.job import Job


log = logging.getLogger("trainyard")


def _open_warmup(job: Job) -> ErrorWarmup | None:
    """The warm-up that still waits for the training error; None: no step need be counted."""
    warmup = job.schedule.warmup
    if isinstance(warmup, ErrorWarmup) and job.progress.warmup_end is None:
        return warmup
    return None


def count(job: Job, counts: Tensor) -> None:
    """Adds a micro-batch's `counts` (2,), those of `correct_counts`, without a host sync."""
    if _open_warmup(job) is not None:
        job.warmup_hits += counts[:1]


def hits_so_far(job: Job) -> int:
    """Collective. Right answers of all ranks in the open window; changes nothing."""
    if _open_warmup(job) is None:
        return 0
    since_restored = int(job.world.sum(job.warmup_hits.cpu()))  # host sync
    return job.progress.warmup_hits + since_restored


def close_window(job: Job) -> None:
    """Collective after the last step of each window, elsewhere nothing: ends the warm-up if due."""
    warmup, step = _open_warmup(job), job.progress.step
    if warmup is None or step % WARMUP_WINDOW_STEPS != 0:
        return
    hits, images = hits_so_far(job), WARMUP_WINDOW_STEPS * job.config.data.global_batch_size
    restore(job, 0)
    if warmup.ends(hits, images):
        job.progress.warmup_end = step
        log.info("warm-up ended at step %d, training error %.2f%%", step, 100 - 100 * hits / images)


def restore(job: Job, hits: int) -> None:
    """Has the open window go on from `hits` right answers of all ranks together."""
    job.progress.warmup_hits = hits
    job.warmup_hits.zero_()
