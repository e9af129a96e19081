"""This rank's batches, of training and of a validation, past the images that are excluded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple

import numpy as np

from pipeline.config import Config, DataConfig
from pipeline.data.batches import Partition, split_global_batch, validation_chunks
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.exclusion import Found
from pipeline.data.images import ImageSet
from pipeline.data.passes import Passes, ValidationLoader
from pipeline.data.sizes import growing_sizes
from pipeline.data.stream import ValStream, train_stream, val_planner
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
