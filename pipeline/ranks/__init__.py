"""The ranks of a job and their communication."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from pipeline.system.failure import TrainingError, heed_signals
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

    Raises `TrainingError` if a rank does not start or the process has groups of torch.distributed
    that others made, and `ValueError` for a process of two launchers, or of Horovod's where Horovod
    is not installed.
    """
    # Here, as importing any part of this package must not load torch.
    from pipeline.ranks.world import World

    started = launched()
    _require_no_other_groups()
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
    _require_horovod()
    from pipeline.ranks.horovod import HorovodWorld

    if step_timeout_sec is not None:
        stalled_sec = str(max(1, int(step_timeout_sec / 2)))
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", stalled_sec)
    if timeline:
        os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")  # read by hvd.init
    return HorovodWorld(started, quiet)


def disconnect() -> None:
    """Ends what `connect` holds open in this process: the groups of torch.distributed. (Horovod
    stays, and serves the next `connect`.)"""
    engine = sys.modules.get("pipeline.ranks.torch_engine")
    if engine is not None and engine.has_groups():
        engine.leave()


def _require_horovod() -> None:
    """Raises `ValueError` if Horovod is not installed."""
    if importlib.util.find_spec("horovod") is None:
        raise ValueError(
            "this rank was started for Horovod (horovodrun, mpirun), which is not installed for "
            f"{sys.executable}; build it with python -m launch.horovod_build --install, or start "
            "the ranks by torchrun"
        )


def _require_no_other_groups() -> None:
    """Raises `TrainingError` if somebody else has initialised torch.distributed in this process,
    which has one default group."""
    theirs = sys.modules.get("torch.distributed")
    ours = sys.modules.get("pipeline.ranks.torch_engine")
    if theirs is None or not theirs.is_available() or not theirs.is_initialized():
        return
    if ours is None or not ours.has_groups():
        raise TrainingError(
            "torch.distributed is initialised in this process already, and a job makes its own "
            "groups; call torch.distributed.destroy_process_group() before, or leave "
            "init_process_group to this program"
        )
