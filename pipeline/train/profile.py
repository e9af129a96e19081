"""Traces of a few steps: the activity of each rank and of Horovod over time, for Perfetto or
chrome://tracing.

Every rank writes the trace of torch's profiler with its phases as ranges; rank 0, Horovod's
coordinator, also the timeline of the collectives. Both cover the same steps.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.config.run import profiled_steps
from pipeline.ranks.world import World
from pipeline.system.failure import PeerLost
from pipeline.system.files import replacing
from pipeline.train.folder import RunFolder
from pipeline.train.phases import Phases, trace_range
from pipeline.train.state import TrainState

log = logging.getLogger("trainyard")
files_log = logging.getLogger("trainyard.files")


class Profile(AbstractContextManager["Profile"]):
    """The profile of a run without `--profile`: traces nothing. Closed at the end of its body,
    unless a peer was lost: the device may wait for that one for ever, and the trace for the
    device."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, PeerLost):
            self.close()

    def before(self, step: int) -> None:
        """Called when the ranks are about to begin `step`."""

    def after(self, step: int) -> None:
        """Called when `step` is done."""

    def close(self) -> None:
        """Writes what has been traced if the run ends among the steps to trace."""


class StepProfile(Profile):
    """Traces `steps`, none of which has begun in `state`, into files whose names begin with `stem`.
    The time it takes to write them is left out of the speed."""

    def __init__(
        self, steps: range, stem: Path, world: World, phases: Phases, state: TrainState,
        on_gpu: bool,
    ) -> None:  # fmt: skip
        self._steps, self._world, self._phases = steps, world, phases
        self._window, self._on_gpu = state.window, on_gpu
        self._trace = stem.with_name(f"{stem.name}-rank{world.rank}.json.gz")
        self._timeline = stem.with_name(f"{stem.name}-horovod.json")
        self._prepare_at = max(steps[0] - 1, state.step)
        self._profiler = _profiler(self._on_gpu)
        self._running = False
        self._step = ExitStack()  # the ranges of the step that is traced

    def before(self, step: int) -> None:
        if step == self._prepare_at:  # the profiler's own start-up is in no step of the trace
            self._profiler.prepare_trace()
        if step == self._steps[0]:
            self._start()
        if self._running:
            self._step = trace_range(f"step {step}", self._on_gpu)

    def after(self, step: int) -> None:
        self._step.close()
        if step == self._steps[-1]:
            self.close()

    def close(self) -> None:
        self._step.close()
        if self._running:
            self._stop()

    def _start(self) -> None:
        self._world.start_timeline(self._timeline)
        self._profiler.start_trace()
        self._phases.annotate(True)
        self._running = True

    def _stop(self) -> None:
        """Ends the trace and writes it; a full disk costs the trace, not the run."""
        started = time.perf_counter()
        self._running = False
        self._world.heartbeat.beat("profile")
        if self._on_gpu:
            torch.cuda.synchronize()  # host sync: what the device still does belongs to the trace
        self._phases.annotate(False)
        self._profiler.stop_trace()
        self._world.stop_timeline()
        try:
            with replacing(self._trace) as partial:
                self._profiler.export_chrome_trace(str(partial))
        except (OSError, RuntimeError) as error:
            files_log.warning("warning: the trace %s cannot be written (%s)", self._trace, error)
        self._window.pause(time.perf_counter() - started)
        if not self._trace.exists():
            return
        names = self._trace.with_name(self._trace.name.replace("-rank0", "-rank*"))
        log.info(
            "profile: the traces of steps %d to %d lie in %s%s; open them at "
            "https://ui.perfetto.dev (they stay in the browser) or, offline, in Chrome's "
            "chrome://tracing",
            self._steps[0], self._steps[-1], names,
            f" and {self._timeline.name}" if self._timeline.exists() else "",
        )  # fmt: skip


def _profiler(on_gpu: bool) -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    else:
        # torch 2.13's Kineto announces every trace on stderr ("USDT: ... profiler_start"), above
        # its errors: level 6 is silence. On a GPU it has errors to report, those of CUPTI.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    return torch.profiler.profile(activities=activities)


def open_profile(
    config: Config, state: TrainState, total_steps: int, world: World, phases: Phases, on_gpu: bool
) -> Profile:
    """Collective. Returns the profile of the steps that `--profile` asks for, from `state` on.

    Files of an earlier profile stay: a new one of the same steps gets a number. Raises `Reported`
    on every rank for steps that the run does not have. Steps that lie behind a resumed run are
    left out with a warning, so that a job that starts again with the same command resumes.
    """
    asked = config.profile
    if asked is None:
        return Profile()
    steps = world.together(lambda: profiled_steps(asked).of_start(state.step, total_steps))
    if not steps:
        log.warning(
            "warning: nothing is profiled: --profile %s lies behind step %d, where the run resumes",
            asked, state.step,
        )  # fmt: skip
        return Profile()
    stem = world.on_rank0(lambda: str(_free_stem(RunFolder(config.run.path).profile, steps)))
    return StepProfile(steps, Path(stem), world, phases, state, on_gpu)


def _free_stem(folder: Path, steps: range) -> Path:
    folder.mkdir(exist_ok=True)
    name, number = f"steps-{steps[0]}-{steps[-1]}", 1
    stem = folder / name
    while any(folder.glob(f"{stem.name}-rank*")) or (folder / f"{stem.name}-horovod.json").exists():
        number += 1
        stem = folder / f"{name}-nr{number}"
    return stem
