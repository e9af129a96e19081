"""The ranks of a job and their communication."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.ranks.world import World


def connect(step_timeout_sec: float | None = None, timeline: bool = False) -> World:
    """The world this process was launched into: Horovod's when a launcher started several ranks,
    otherwise one process alone, for which Horovod need not be installed.

    `step_timeout_sec` is when the watchdog acts; Horovod logs who is missing after half of it.
    `timeline` is whether `start_timeline` will be called. Raises `TrainingError` if a rank does not
    start.
    """
    # Here, as importing any part of this package must not load torch.
    from pipeline.ranks.horovod import HorovodWorld
    from pipeline.ranks.world import World

    if "HOROVOD_RANK" not in os.environ and "OMPI_COMM_WORLD_RANK" not in os.environ:
        return World()
    if step_timeout_sec is not None:
        stalled_sec = str(max(1, int(step_timeout_sec / 2)))
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", stalled_sec)
    if timeline:
        os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")  # read by hvd.init
    return HorovodWorld()
