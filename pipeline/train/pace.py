"""How fast the ranks are and where their time goes, from one gathered vector at log steps."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.ranks.heartbeat import Heartbeat
from pipeline.train.metrics import TrainWindow
from pipeline.train.phases import PHASES, Phases

_SHARED = tuple(phase for phase in PHASES if phase != "record")  # that one is of the rest
_GPU_MEMORY = ("gpu_memory_torch_bytes", "gpu_memory_dali_bytes", "gpu_memory_other_bytes")
_OF_COUNTS = 4  # TrainWindow.sums
_OF_TIMES = 3  # TrainWindow.timings()


def of_this_rank(
    window: TrainWindow, phases: Phases, heartbeat: Heartbeat, dali_on_gpu: bool
) -> Tensor:
    """(n,) float64: what this rank adds to the line of metrics. A host sync on a GPU."""
    memory = window.memory.held_bytes(dali_decodes=dali_on_gpu)
    more = [*phases.seconds(), heartbeat.take_longest_sec(), *memory]
    timed = torch.tensor(more, dtype=torch.float64)
    return torch.cat([window.sums, window.timings(), timed])


def of_all_ranks(everyone: Tensor) -> dict[str, float | None]:
    """A line's counts, speeds and times. `everyone` (ranks, n) holds all `of_this_rank`.

    loss, top1, top5: of all images since the last line.
    images_per_sec: of the job; time of saving and validating is left out.
    data_wait_sec, data_wait_share: waiting for the loader, mean over ranks; the share is of the
        time without saving and validating, as is communication_share, which is waiting for
        gradients after backward.
    rank_images_per_sec, slowest_images_per_sec, slowest_rank: speed of a rank by itself, that is
        in its time without waiting for other ranks: the mean, the lowest, and whose that is.
        (Ranks take equal steps together: only what they do on their own can differ.)
    share_*: of all the time since the last line, mean over ranks; their sum is 1.
    heartbeat_sec: the longest that any rank was without a heartbeat; the watchdog ends the job at
        run.step_timeout_sec.
    gpu_memory_torch_bytes, gpu_memory_dali_bytes, gpu_memory_other_bytes: on a GPU, each the
        highest of any rank; `pipeline.train.metrics` says what is whose.
    """
    ranks = len(everyone)
    loss, top1, top5, images = everyone[:, :_OF_COUNTS].sum(0).tolist()
    times = everyone[:, _OF_COUNTS : _OF_COUNTS + _OF_TIMES]
    timed_images, seconds, paused = times.sum(0).tolist()
    rest = everyone[:, _OF_COUNTS + _OF_TIMES :]
    phases = dict(zip(PHASES, rest.T[: len(PHASES)], strict=True))
    heartbeat, *memory = rest[:, len(PHASES) :].amax(0).tolist()

    alone = (times[:, 1] - phases["agreement"] - phases["communication"]).clamp(min=1e-9)
    speeds = times[:, 0] / alone
    slowest = int(speeds.argmin())
    spent = {phase: float(phases[phase].sum()) for phase in _SHARED}
    # On a GPU a save also waits for work that the device's own clock has in another phase.
    whole = max(seconds + paused, sum(spent.values()))
    shares = {f"share_{name}": sec / whole for name, sec in spent.items()}
    line: dict[str, float | None] = {
        "loss": loss / images,
        "top1": top1 / images,
        "top5": top5 / images,
        "images_per_sec": timed_images / (seconds / ranks),
        "data_wait_sec": float(phases["data_wait"].mean()),
        "data_wait_share": float(phases["data_wait"].sum()) / seconds,
        "communication_share": float(phases["communication"].sum()) / seconds,
        "rank_images_per_sec": float(speeds.mean()),
        "slowest_images_per_sec": float(speeds[slowest]),
        "slowest_rank": slowest,
        **shares,
        "share_rest": max(0.0, 1.0 - sum(shares.values())),
        "heartbeat_sec": heartbeat,
    }
    if any(memory):
        line |= dict(zip(_GPU_MEMORY, memory, strict=True))
    return line
