"""The phases of a step: each beats the heartbeat, is timed, and is named in a profiler's trace.

    with phases("forward"):
        ...

On a CPU a phase's time is wall clock. On a GPU it is the time between two CUDA events of the
current stream: how long the device was in it, idle time while it waits for the host with it. Events
are read when a line of metrics is due, never in a step.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, get_args

import torch

from pipeline.ranks.heartbeat import Heartbeat

Phase = Literal[
    "data_wait", "forward", "backward", "communication", "agreement", "optimizer", "checkpoint",
    "validation", "record",
]  # fmt: skip
"""data_wait: waits for the loader. communication: waits for gradients after backward has ended,
what of it is exposed. agreement: waits for the other ranks before a batch is used. optimizer:
changes the weights. record: writes a line of metrics.

The same names are used in metrics.jsonl (`share_<name>`), in traces and in reports of a hang."""

PHASES: tuple[Phase, ...] = get_args(Phase)
_OF_HOST = ("checkpoint", "validation", "record")
"""Phases that wait for the device, so that wall clock measures them."""


class Phases:
    """This rank's time since `restart`, in seconds by phase.

    A phase may come any number of times, with others in it (whose time then counts in both), but
    not within itself.
    """

    def __init__(self, heartbeat: Heartbeat, device: torch.device) -> None:
        self._heartbeat = heartbeat
        on_gpu = device.type == "cuda"
        self._spans: dict[str, _Span] = {
            phase: _DeviceSpan(phase) if on_gpu and phase not in _OF_HOST else _Span(phase, on_gpu)
            for phase in PHASES
        }

    def __call__(self, phase: Phase, step: int | None = None) -> AbstractContextManager[None]:
        """Begins `phase`, of the same step as before unless given; a context manager."""
        self._heartbeat.beat(phase, step)
        return self._spans[phase]

    def annotate(self, on: bool) -> None:
        """Makes phases that begin from now on appear in a profiler's trace as ranges of their
        names: torch's, and NVTX on a GPU. Costs a few microseconds a phase, nothing while off."""
        for span in self._spans.values():
            span.annotated = on

    def seconds(self) -> list[float]:
        """The time in each phase, as `PHASES` orders them. A host sync on a GPU."""
        return [span.seconds() for span in self._spans.values()]

    def restart(self) -> None:
        """Restarts the count."""
        for span in self._spans.values():
            span.restart()


def trace_range(name: str, on_gpu: bool) -> ExitStack:
    """Begins a range in a profiler's trace, which ends when it is closed: torch's, and NVTX."""
    ranges = ExitStack()
    ranges.enter_context(torch.profiler.record_function(name))
    if on_gpu:
        ranges.enter_context(torch.cuda.nvtx.range(name))
    return ranges


class _Span(AbstractContextManager[None]):
    """One phase, timed by the host's clock."""

    def __init__(self, phase: str, on_gpu: bool = False) -> None:
        self.annotated = False
        self._phase, self._on_gpu = phase, on_gpu
        self._range: ExitStack | None = None
        self._started = self._seconds = 0.0

    def __enter__(self) -> None:
        if self.annotated:
            self._range = trace_range(self._phase, self._on_gpu)
        self._begin()

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._range is not None:
            self._range.close()
            self._range = None

    def _begin(self) -> None:
        self._started = time.perf_counter()

    def _end(self) -> None:
        self._seconds += time.perf_counter() - self._started

    def seconds(self) -> float:
        return self._seconds

    def restart(self) -> None:
        self._seconds = 0.0


class _DeviceSpan(_Span):
    """One phase, timed on the device's current stream. Events are made once and used again."""

    def __init__(self, phase: str) -> None:
        super().__init__(phase, on_gpu=True)
        self._events: list[tuple[Any, Any]] = []  # of a begin and an end
        self._used = 0

    def _begin(self) -> None:
        if self._used == len(self._events):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._events.append((begin, end))
        self._events[self._used][0].record()

    def _end(self) -> None:
        self._events[self._used][1].record()
        self._used += 1

    def seconds(self) -> float:
        used = self._events[: self._used]
        if used:
            used[-1][1].synchronize()  # host sync
        return float(sum(begin.elapsed_time(end) for begin, end in used)) / 1000.0

    def restart(self) -> None:
        self._used = 0
