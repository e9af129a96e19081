"""Passes of the loader that are timed between two of their batches, away from both their ends.

Three passes over the same images show where the time of a configuration's loader goes:
the loader as in training; its graph with the files already in memory and the crops planned; only
the decoding of that graph. Their times per image split the first: decoding; the rest of the graph;
reading, planning and handing over.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from pipeline.benchmark.result import Spread, by_round, ratio
from pipeline.config import Config
from pipeline.data.dali import (
    DecodeSettings,
    Loader,
    as_lists,
    graph_inputs,
    make_pipeline,
    read_patiently,
)
from pipeline.data.dali.graph import make_decoding_pipeline
from pipeline.data.images import ImageSet
from pipeline.data.stream import TrainStream, train_stream

_KEPT = 3  # batches in memory, which go round
_OF_DECODING = 3  # of the graph's inputs
_FIRST_BATCHES = 4  # timed to see how long a batch takes

Rate = Callable[[], float]


def middle_speed(
    batches: Iterable[object], first: int, timed: int, images: int, device: torch.device
) -> float:
    """Images per second of the `timed` batches after the `first` ones of a pass; batches have
    `images` each and count when they have arrived on `device`.

    The batches before fill the queues, or come from full ones; those after keep every worker busy
    until the clock stops. The pass runs to its end, so that nothing is left running.
    """
    arrived = []
    for _ in batches:
        if device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        arrived.append(time.perf_counter())
    return timed * images / (arrived[first + timed - 1] - arrived[first - 1])


class LoaderPasses:
    """Passes of a training's `Loader`, each continuing in the stream where the last one ended."""

    def __init__(self, stream: TrainStream, settings: DecodeSettings, images: int) -> None:
        """`images` in a batch."""
        self._stream, self._settings, self._images = stream, settings, images
        self._position = 0

    def chunks(self, batches: int) -> list[np.ndarray]:
        """The next positions."""
        first = self._position
        self._position += batches * self._images
        return [
            np.arange(start, start + self._images, dtype=np.int64)
            for start in range(first, self._position, self._images)
        ]

    def open(self, batches: int) -> contextlib.closing[Loader]:
        """The next pass."""
        chunks = iter(self.chunks(batches))
        return contextlib.closing(
            Loader(self._stream, chunks, batches, self._images, self._settings)
        )

    def images_per_sec(self, edge: int, timed: int) -> float:
        """Images per second in the middle of the next pass, with `edge` batches before and
        after."""
        with self.open(timed + 2 * edge) as loader:
            return middle_speed(loader, edge, timed, self._images, self._settings.device)


class LoaderParts:
    """The three passes over one training set. Each leaves nothing running."""

    def __init__(
        self, images: ImageSet, config: Config, settings: DecodeSettings, batch: int,
        round_sec: float,
    ) -> None:  # fmt: skip
        """Prepares rounds of about `round_sec`, with batches of `batch` images."""
        self._stream = train_stream(images, config.data, config.run.seed, settings.normalisation)
        settings = settings.for_effects(self._stream.effects)
        self._settings, self._batch, self._round_sec = settings, batch, round_sec
        # At the start queues are full or filling, at the end planners have nothing left to do.
        self._first, self._last = 2 * settings.prefetch + 1, settings.prefetch + 1
        self._passes = LoaderPasses(self._stream, settings, batch)
        self._inputs: list[tuple[Any, ...]] = []
        if settings.decoder != "none":
            self._inputs = [self._input(chunk) for chunk in self._passes.chunks(_KEPT)]

    def sides(self) -> dict[str, Rate]:
        """Functions that measure a round of each pass, by the name of its spread. The first round
        warms up: its few batches determine how many the others have."""
        sides = {"loader_images_per_sec": self._side(self._passes.open)}
        if self._settings.decoder != "none":
            sides["from_memory_images_per_sec"] = self._side(
                lambda batches: self._graph(make_pipeline, batches)
            )
            sides["decoding_images_per_sec"] = self._side(
                lambda batches: self._graph(make_decoding_pipeline, batches, _OF_DECODING)
            )
        return sides

    def _side(
        self, open_pass: Callable[[int], contextlib.AbstractContextManager[Iterable[Any]]]
    ) -> Rate:
        timed = 0

        def measure() -> float:
            nonlocal timed
            first, count = self._first, timed or _FIRST_BATCHES
            with open_pass(first + count + self._last) as batches:
                speed = middle_speed(batches, first, count, self._batch, self._settings.device)
            timed = timed or max(_FIRST_BATCHES, round(self._round_sec * speed / self._batch))
            return speed

        return measure

    @contextlib.contextmanager
    def _graph(
        self, make: Callable[..., Any], batches: int, inputs: int | None = None
    ) -> Iterator[Iterator[Any]]:
        """The batches of a graph that takes the first `inputs` of the inputs in memory; None:
        all."""
        taken = [one[:inputs] for one in self._inputs]
        left = itertools.islice(itertools.cycle(taken), batches)
        pipe = make(lambda: next(left), self._batch, self._settings)
        pipe.build()
        yield (pipe.run() for _ in range(batches))

    def _input(self, positions: np.ndarray) -> tuple[Any, ...]:
        selection, images = self._stream.select(positions), self._stream.image_set
        encoded = [read_patiently(images, int(image)) for image in selection.images]
        return as_lists(graph_inputs(selection, encoded, images, self._settings))


def loader_shares(spreads: dict[str, Spread]) -> dict[str, Spread]:
    """Shares of the loader's time per image, by round, from the spreads of `LoaderParts.sides`.

    `decoding_of_loader`, `resizing_of_loader` (the rest of the graph), `reading_of_loader` (the
    rest): clipped at 0 against the noise of two passes. Empty where nothing is decoded.
    """
    if "decoding_images_per_sec" not in spreads:
        return {}
    whole = spreads["loader_images_per_sec"]
    from_memory = ratio(whole, spreads["from_memory_images_per_sec"])
    graph = by_round(lambda share: min(1.0, share), from_memory)
    decoding = by_round(min, graph, ratio(whole, spreads["decoding_images_per_sec"]))
    return {
        "decoding_of_loader": decoding,
        "resizing_of_loader": by_round(operator.sub, graph, decoding),
        "reading_of_loader": by_round(lambda share: 1 - share, graph),
    }
