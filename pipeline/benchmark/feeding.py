"""What the loader of a configuration gives one rank, and which part of its time goes where.

Three passes over the same images: the loader as a training has it; its graph with the files already
in memory and the crops planned; of that graph only the decoding. Their times per image split the
first one: decoding; the rest of the graph; reading, planning and handing over.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from pipeline.benchmark.result import Spread, ratio
from pipeline.config import Config
from pipeline.data.dali import DecodeSettings, Loader, graph_inputs, make_pipeline, read_patiently
from pipeline.data.dali.graph import make_decoding_pipeline
from pipeline.data.images import ImageSet
from pipeline.data.stream import TrainStream, train_planner

_KEPT = 3  # batches in memory, which go round
_OF_DECODING = 3  # of the graph's inputs
_FIRST_BATCHES = 4  # timed to see how long a batch takes

Rate = Callable[[], float]


class Feeding:
    """The passes over one training set. Each measures img/s between two batches of a pass, away
    from both its ends, and leaves nothing running."""

    def __init__(
        self, images: ImageSet, config: Config, settings: DecodeSettings, batch: int,
        round_sec: float,
    ) -> None:  # fmt: skip
        """A round takes about `round_sec`; `batch` images at once."""
        planner = train_planner(config.data, settings.normalisation)
        self._stream = TrainStream(images, planner, config.run.seed)
        self._settings, self._batch, self._round_sec = settings, batch, round_sec
        # At the start queues are full or filling, at the end planners have nothing to do any more.
        self._first, self._last = 2 * settings.prefetch + 1, settings.prefetch + 1
        self._position = 0
        self._inputs: list[tuple[Any, ...]] = []
        if settings.decoder != "none":
            self._inputs = [self._input(chunk) for chunk in self._chunks(_KEPT)]
        self._timed: dict[str, int] = {}

    def sides(self) -> dict[str, Rate]:
        """What measures a round of each pass, by the name of its spread; each is warm."""
        sides: dict[str, Rate] = {"loader_images_per_sec": self.whole}
        if self._settings.decoder != "none":
            sides["from_memory_images_per_sec"] = self.from_memory
            sides["decoding_images_per_sec"] = self.decoding
        for measure in sides.values():
            measure()
        return sides

    def whole(self) -> float:
        """Images per second of the loader."""

        def open_loader(batches: int) -> contextlib.closing[Loader]:
            chunks = self._chunks(batches)
            return contextlib.closing(
                Loader(self._stream, chunks, batches, self._batch, self._settings)
            )

        return self._measure("whole", open_loader)

    def from_memory(self) -> float:
        """Images per second of the loader's graph alone."""
        return self._measure("from memory", lambda batches: self._graph(make_pipeline, batches))

    def decoding(self) -> float:
        """Images per second of the graph's decoding alone."""
        return self._measure(
            "decoding", lambda batches: self._graph(make_decoding_pipeline, batches, _OF_DECODING)
        )

    def _measure(
        self,
        name: str,
        open_pass: Callable[[int], contextlib.AbstractContextManager[Iterable[Any]]],
    ) -> float:
        """The first time few batches, which say how many a round has."""
        timed = self._timed.get(name, _FIRST_BATCHES)
        arrived = []
        with open_pass(self._first + timed + self._last) as batches:
            for _ in batches:
                if self._settings.device.type == "cuda":
                    torch.cuda.current_stream().synchronize()
                arrived.append(time.perf_counter())
        seconds = arrived[self._first + timed - 1] - arrived[self._first - 1]
        if name not in self._timed:
            self._timed[name] = max(_FIRST_BATCHES, round(self._round_sec * timed / seconds))
        return timed * self._batch / seconds

    @contextlib.contextmanager
    def _graph(
        self, make: Callable[..., Any], batches: int, inputs: int | None = None
    ) -> Iterator[Iterator[Any]]:
        """The batches of a graph that takes the first `inputs` of those in memory; None: all."""
        taken = [one[:inputs] for one in self._inputs]
        left = itertools.islice(itertools.cycle(taken), batches)
        pipe = make(lambda: next(left), self._batch, self._settings)
        pipe.build()
        yield (pipe.run() for _ in range(batches))

    def _chunks(self, batches: int) -> Iterator[np.ndarray]:
        """The next positions."""
        first = self._position
        self._position += batches * self._batch
        for start in range(first, self._position, self._batch):
            yield np.arange(start, start + self._batch, dtype=np.int64)

    def _input(self, positions: np.ndarray) -> tuple[Any, ...]:
        selection, images = self._stream.select(positions), self._stream.manifest
        encoded = [read_patiently(images, int(image)) for image in selection.images]
        return graph_inputs(selection, encoded, images, self._settings)


def loader_shares(spreads: dict[str, Spread]) -> dict[str, Spread]:
    """Shares of the loader's time per image, by round, from the spreads of `Feeding.sides`.

    `decoding_of_loader`, `resizing_of_loader` (the rest of the graph), `reading_of_loader` (the
    rest): none below 0, as noise of two passes could have it. Empty where nothing is decoded.
    """
    if "decoding_images_per_sec" not in spreads:
        return {}
    whole = spreads["loader_images_per_sec"]
    graph = ratio(whole, spreads["from_memory_images_per_sec"]).rounds
    decoding = ratio(whole, spreads["decoding_images_per_sec"]).rounds
    graph = tuple(min(1.0, share) for share in graph)
    pairs = list(zip(graph, decoding, strict=True))
    return {
        "decoding_of_loader": Spread(tuple(min(a, b) for a, b in pairs)),
        "resizing_of_loader": Spread(tuple(max(0.0, a - b) for a, b in pairs)),
        "reading_of_loader": Spread(tuple(1 - share for share in graph)),
    }
