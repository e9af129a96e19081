"""One decision for all ranks: stop, save, or give up, taken before a micro-batch is used.

Nothing else in a step invents its own collective. A rank whose next batch failed says so here,
before any rank computes with its own, so that all leave from the same point. The decision on a
batch is on its way while the batch before it is computed, so that nobody waits for it: a signal
acts one step later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.data.dali import Batch, Loader
from pipeline.data.images import BadImage
from pipeline.ranks.world import World
from pipeline.system.failure import STOP_SIGNALS, StopSignal, TrainingError, in_words
from pipeline.train.phases import Phases


@dataclass(frozen=True)
class Decision:
    """The ranks' common decision before the batch they hold."""

    stop: str
    """The signal to stop by, of `STOP_SIGNALS`; empty: continue."""
    save: bool


Recover = Callable[[Exception | None, int, int], Callable[[], Loader] | None]
"""Collective. Takes this rank's error, step and micro-batch; returns what opens the loader to
continue with, None if there is none."""


@dataclass(frozen=True)
class _Fetched:
    """A batch or an error of this rank, and what waits for the ranks' decision on it."""

    batch: Batch | None
    error: Exception | None
    decision: Callable[[], list[int]]


class Feed:
    """The loader's batches, each with the ranks' common decision."""

    def __init__(
        self, loader: Loader, world: World, stop: StopSignal, phases: Phases,
        recover: Recover | None = None,
    ) -> None:  # fmt: skip
        self._loader, self._world, self._stop = loader, world, stop
        self._phases, self._recover = phases, recover
        self._batches: Iterator[Batch] = iter(loader)
        self._ahead: _Fetched | None = None

    def close(self) -> None:
        """Ends the loader's threads."""
        self._loader.close()

    def fetch(self, step: int, wants_save: bool = False) -> None:
        """Collective. Fetches this rank's next micro-batch, which is of `step`, and starts the
        decision on it. `next` gives it out."""
        assert self._ahead is None, "a batch is fetched already"
        batch: Batch | None = None
        error: Exception | None = None
        with self._phases("data_wait"):
            try:
                batch = next(self._batches)
            except Exception as caught:  # whatever it is, the other ranks must know
                error = caught
        decision = self._world.start_maximum([self._stop.received, wants_save, error is not None])
        self._ahead = _Fetched(batch, error, decision)

    def next(self, step: int, wants_save: bool = False, micro: int = 0) -> tuple[Batch, Decision]:
        """Collective. This rank's next micro-batch: number `micro` of `step`.

        When any rank's batch failed, every rank gets it again without the bad images, or raises
        `Reported`.
        """
        while True:
            if self._ahead is None:
                self.fetch(step, wants_save)
            assert self._ahead is not None
            found, self._ahead = self._ahead, None
            with self._phases("agreement", step):
                stop, save, failed = found.decision()
            if not failed:
                assert found.batch is not None
                return found.batch, Decision(STOP_SIGNALS[stop], bool(save))
            self._recover_or_raise(found.error, step, micro)

    def _recover_or_raise(self, error: Exception | None, step: int, micro: int) -> None:
        """Collective. Reopens the data at this micro-batch, or raises `Reported`."""
        reopen = self._recover(error, step, micro) if self._recover else None
        if reopen is None:
            self._world.raise_together(None if error is None else self._explained(error, step))
            return
        self._loader.close()  # close first: two decoders at once may not fit into a GPU's memory
        self._loader = self._world.together(reopen)
        self._batches = iter(self._loader)

    def _explained(self, error: Exception, step: int) -> Exception:
        where = f"met at step {step} by rank {self._world.rank}"
        if isinstance(error, BadImage):
            fix = (
                "put back the file that was scanned and start again"
                if error.changed
                else "continue without it by data.bad_images=exclude, or put a good copy there, "
                "which changes the data, and start under a new run.name"
            )
            return ValueError(f"{error} ({where}); {fix}")
        return TrainingError(f"the loader failed: {in_words(error)} ({where})")
