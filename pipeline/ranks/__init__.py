"""The ranks of a job and their communication."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.system.failure import heed_signals
from pipeline.system.launched import launched
from pipeline.system.machine import end_with_parent, keep_triton_cache_on_this_node

if TYPE_CHECKING:
    from pipeline.ranks.world import World


def connect(
    step_timeout_sec: float | None = None, timeline: bool = False, quiet: bool = False
) -> World:
    """The world this process was launched into: over Horovod or torch.distributed, whichever
    launcher started it, or one process alone, for which neither need be installed.

    `step_timeout_sec` is when the watchdog acts; Horovod logs who is missing after half of it.
    `timeline` is whether `start_timeline` will be called. `quiet` is whether gradients stay off the
    engine where all ranks are on the CPUs of one machine, as fixed sums do.

    Raises `TrainingError` if a rank does not start, and `ValueError` for a process of two
    launchers.
    """
    # Here, as importing any part of this package must not load torch.
    from pipeline.ranks.world import World

    started = launched()
    heed_signals()  # a rank that waits for others must be ended when they do not come
    if started.size > 1 or "SLURM_JOB_ID" in os.environ:  # a home may be shared by nodes
        keep_triton_cache_on_this_node()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # a torchrun that is killed leaves its ranks behind
    if started.size == 1:
        return World()
    if started.engine == "torch":
        from pipeline.ranks.torch_engine import TorchWorld

        return TorchWorld(started)
    from pipeline.ranks.horovod import HorovodWorld

    if step_timeout_sec is not None:
        stalled_sec = str(max(1, int(step_timeout_sec / 2)))
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", stalled_sec)
    if timeline:
        os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")  # read by hvd.init
    return HorovodWorld(started, quiet)
