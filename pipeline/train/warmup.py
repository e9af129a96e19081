"""Ends the warm-up that waits for the training error to fall (`schedule.ErrorWarmup`)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from pipeline.ranks.world import World
from pipeline.train.schedule import WARMUP_WINDOW_STEPS, ErrorWarmup, Warmup

log = logging.getLogger("trainyard")


class ErrorWindow:
    """Counts right answers over fixed windows of steps, over all ranks, to end an `ErrorWarmup`.
    For any other warm-up it counts nothing.

    The end of the warm-up depends only on the training itself: not on when metrics are logged, on
    checkpoints or on the number of ranks.
    """

    def __init__(self, warmup: Warmup, global_batch_size: int, device: torch.device) -> None:
        self._warmup = warmup if isinstance(warmup, ErrorWarmup) else None
        self._global_batch_size = global_batch_size
        # In the open window: those of all ranks at the restore, and of this rank since then.
        self._hits_before = 0
        self._hits = torch.zeros(1, dtype=torch.int64, device=device)
        self.end: int | None = None
        """The first step after the warm-up; None: not yet, or there is none."""

    def __repr__(self) -> str:
        """The same text on every rank, for the digest over ranks."""
        return f"ErrorWindow(end={self.end}, hits={self._hits_before})"

    @property
    def end_position(self) -> int | None:
        """The position of the step `end`."""
        return None if self.end is None else self.end * self._global_batch_size

    def _open_warmup(self) -> ErrorWarmup | None:
        return self._warmup if self.end is None else None

    def add(self, counts: Tensor) -> None:
        """Adds a micro-batch's `correct_counts`, without a host sync."""
        if self._open_warmup() is not None:
            self._hits += counts[:1]

    def close(self, next_step: int, world: World) -> None:
        """Ends the warm-up if the error of a window was low enough. Collective after the last step
        of each window; elsewhere does nothing."""
        warmup = self._open_warmup()
        if warmup is None or next_step % WARMUP_WINDOW_STEPS != 0:
            return
        hits = self._hits_so_far(world)
        self._begin(0)
        images = WARMUP_WINDOW_STEPS * self._global_batch_size
        if warmup.ends(hits, images):
            self.end = next_step
            error = 100 - 100 * hits / images
            log.info("warm-up ended at step %d, training error %.2f%%", next_step, error)

    def state(self, world: World) -> dict[str, Any]:
        """Collective. Returns its part of a checkpoint."""
        return {"end": self.end, "hits": self._hits_so_far(world)}

    def load(self, state: dict[str, Any]) -> None:
        """Resumes where `state` was taken."""
        self.end = state["end"]
        self._begin(state["hits"])

    def _hits_so_far(self, world: World) -> int:
        if self._open_warmup() is None:
            return 0
        return self._hits_before + int(world.sum(self._hits.cpu()))  # host sync

    def _begin(self, hits: int) -> None:
        self._hits_before = hits
        self._hits.zero_()
