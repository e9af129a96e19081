"""This rank's batches, of training and of a validation, past the images that are excluded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple

import numpy as np

from pipeline.config import Config, DataConfig
from pipeline.data.batches import Partition, split_global_batch, validation_chunks
from pipeline.data.dali import Batch, DecodeSettings, Loader
from pipeline.data.exclusion import Found, too_many
from pipeline.data.images import BadImage, ImageSet
from pipeline.data.sizes import growing_sizes
from pipeline.data.stream import ImageStream, ValStream, train_stream, val_planner
from pipeline.ranks.world import World
from pipeline.train.excluding import Excluded


class Loaders:
    """Opens the loaders of a run of `steps`, each past the images that are `excluded` by then.

    Growing sizes need no loader of their own: the size is an input of the one graph, batch by
    batch. Raises `ValueError` for a batch that does not fit the number of ranks, a size that begins
    after the last step, or a class without images where each has its turn.
    """

    def __init__(
        self, config: Config, world: World, decode: DecodeSettings, train_set: ImageSet,
        val_set: ImageSet, steps: int,
    ) -> None:  # fmt: skip
        self._config, self._world, self._val_set, self._steps = config, world, val_set, steps
        data = config.data
        self.excluded = Excluded(data.max_excluded)
        micro_batch, self.accumulation = split_global_batch(
            data.global_batch_size, data.local_batch_size, world.size
        )
        self.partition = Partition(data.global_batch_size, micro_batch, world.rank, world.size)
        self.decode = decode
        self.sizes = growing_sizes(data, len(train_set), steps)
        """Of the training crops; None: they have one size."""
        self.stream = train_stream(
            train_set, data, config.run.seed, decode.normalisation, self.sizes
        )
        self.passes = val_passes(data, decode)

    def train(self, step: int, micro: int = 0) -> Loader:
        """This rank's micro-batches from number `micro` of `step` to the end of the run."""
        self.stream.exclusions = self.excluded.train
        left = (self._steps - step) * self.accumulation - micro

        def chunks() -> Iterator[np.ndarray]:
            for number in range(micro, micro + left):
                later, one = divmod(number, self.accumulation)
                yield self.partition.positions(step + later, one)

        size = self.partition.micro_batch_size
        return Loader(self.stream, chunks(), left, size, self.decode)

    def figures(self, step: int) -> dict[str, int]:
        """What a line of metrics says of the data, the last of whose steps is `step`."""
        found = {"excluded": len(self.excluded.train)}
        return found if self.sizes is None else {**found, "image_size": self.sizes.of_step(step)}

    def val(self) -> ValidationLoader:
        """This rank's part of the validation set, for one validation at a time; not to be closed,
        as its graph serves the next one."""
        excluded = frozenset(self.excluded.val)
        return open_val_loader(self._config, self._val_set, self._world, self.passes, excluded)

    def close(self) -> None:
        """Frees what stands between validations. A training's loader belongs to who opened it."""
        self.passes.close()

    def recover(
        self, error: Exception | None, step: int, micro: int
    ) -> Callable[[], Loader] | None:
        """Collective, when any rank's micro-batch failed. Returns what opens the loader
        from this very micro-batch on, bad images excluded; None if the run cannot continue
        without them."""
        if self._config.data.bad_images != "exclude":
            return None
        positions = self.partition.positions(step, micro)
        found = None if error is None else self.stream.locate(error, positions)
        mine = None if found is None else astuple(found)
        everyone = self._world.gather_objects((mine, error is not None and found is None))
        if any(hopeless for _, hopeless in everyone):
            return None
        found_by_all = [Found(*found) for found, _ in everyone if found is not None]
        batch = self._config.data.global_batch_size
        self.excluded.met_in_training(found_by_all, batch, self._world)
        return lambda: self.train(step, micro)


class Passes:
    """A loader for one pass after another, in batches of at most `batch_size`.

    Its graph stands from the first pass on, as it takes seconds to build on a GPU. Between passes
    it holds its decoders and their memory, no batch, and threads that sleep.
    """

    def __init__(self, batch_size: int, decode: DecodeSettings) -> None:
        self._batch_size, self._decode = batch_size, decode
        self._loader: Loader | None = None

    def open(self, stream: ImageStream, chunks: Iterable[np.ndarray], length: int) -> Loader:
        """The loader, started on the `length` batches of `stream` at `chunks`; what was left of the
        pass before is lost."""
        if self._loader is None:
            self._loader = Loader(stream, chunks, length, self._batch_size, self._decode)
        else:
            self._loader.start(stream, chunks, length)
        return self._loader

    def close(self) -> None:
        """Ends the loader's threads and frees DALI's memory; another pass builds them anew."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None


class ValidationLoader:
    """This rank's batches of a validation, a pass of `passes`, past at most data.max_excluded bad
    files if data.bad_images says so.

    Batch n of `count` holds `positions(n)`, (B,) int64. What is passed
    over is added to `stream.excluded` and listed in `found`.
    """

    def __init__(
        self, stream: ValStream, positions: Callable[[int], np.ndarray], count: int,
        passes: Passes, data: DataConfig,
    ) -> None:  # fmt: skip
        self._stream, self._positions, self._count = stream, positions, count
        self._most = data.max_excluded if data.bad_images == "exclude" else None
        self._passes = passes
        self._loader = self._open_from(0)
        self.found: list[Found] = []

    def _open_from(self, done: int) -> Loader:
        left = (self._positions(number) for number in range(done, self._count))
        return self._passes.open(self._stream, left, self._count - done)

    def __iter__(self) -> Iterator[Batch]:
        done = 0
        while True:
            try:
                for batch in self._loader:
                    done += 1
                    yield batch
                return
            except BadImage as error:
                found = self._stream.locate(error, self._positions(done))
                if found is None or self._most is None:
                    raise
            self.found.append(found)
            self._stream.excluded |= {found.image}
            if len(self._stream.excluded) > self._most:
                raise too_many(len(self._stream.excluded), self._most)
            self._loader = self._open_from(done)

    def close(self) -> None:
        """Closes the passes."""
        self._passes.close()


def val_passes(data: DataConfig, decode: DecodeSettings) -> Passes:
    """Passes with the batches and the views of a validation."""
    size = data.view_size
    return Passes(data.local_batch_size, decode.for_shape((size, size)))


def open_val_loader(
    config: Config, val_set: ImageSet, world: World, passes: Passes,
    excluded: frozenset[int] = frozenset(),
) -> ValidationLoader:  # fmt: skip
    """Chunk c is images [c*b, (c+1)*b) with b = data.local_batch_size, at every world size; the
    `passes` are of such batches."""
    batch = config.data.local_batch_size
    chunks = validation_chunks(len(val_set), batch, world.rank, world.size)
    stream = ValStream(val_set, val_planner(config.data))
    stream.excluded = excluded

    def positions(number: int) -> np.ndarray:
        return np.arange(chunks[number] * batch, (chunks[number] + 1) * batch, dtype=np.int64)

    return ValidationLoader(stream, positions, len(chunks), passes, config.data)
