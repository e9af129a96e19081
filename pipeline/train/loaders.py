"""This rank's batches, of training and of a validation, past the images that are excluded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, DataConfig
from pipeline.data.batches import Partition, split_global_batch, validation_chunks
from pipeline.data.dali import Batch, DecodeSettings, Loader
from pipeline.data.exclusion import Exclusions, Found, read_list, too_many
from pipeline.data.images import BadImage, ImageSet
from pipeline.data.stream import TrainStream, ValStream, train_planner, val_planner
from pipeline.ranks.world import World

log = logging.getLogger("trainyard")


class Excluded:
    """The images that a run continues without (data.bad_images=exclude, data.exclude), the same on
    every rank; at most `most` of them.

    In training all ranks agree on what is excluded before any of them uses its next micro-batch,
    and then take up the data at the same place. In validation each rank skips its own bad
    files and the ranks exchange them at the end.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.train = Exclusions()
        """Training images, with the positions from which they are left out."""
        self.val: tuple[int, ...] = ()
        """Validation images, which count as wrong unseen, rising."""

    def __repr__(self) -> str:
        """The same text on every rank, for the digest over ranks."""
        return f"Excluded({self.state()})"

    def state(self) -> dict[str, Any]:
        """The exclusions as a checkpoint stores them."""
        return {"train": self.train.rows(), "val": list(self.val)}

    def load(self, state: dict[str, Any]) -> None:
        """Continues with the exclusions in `state`."""
        self.train, self.val = Exclusions(state["train"]), tuple(state["val"])

    def met_in_training(self, found: list[Found], images_per_step: int, world: World) -> None:
        """Collective. Excludes what all ranks together have `found`. Raises `Reported` if that is
        too much."""
        pairs = ((one.image, one.position) for one in found)
        self.train = self.train.failed(pairs, images_per_step)
        self._report("train", found, world)

    def met_in_validation(self, mine: list[Found], world: World) -> None:
        """Collective. Exchanges what each rank skipped in validation."""
        everyone = [found for theirs in world.gather_objects(mine) for found in theirs]
        # Two ranks may have met the same image, one of them in place of another bad one.
        by_image = {found.image: found for found in everyone}
        if by_image:
            self.val = tuple(sorted({*self.val, *by_image}))
            self._report("val", list(by_image.values()), world)

    def listed(
        self, path: Path, train_set: ImageSet, val_set: ImageSet, position: int, world: World
    ) -> None:
        """Collective. Excludes the images of the list data.exclude, from `position` on.

        Raises `Reported` for a list that cannot be read or is of other data, naming both hashes.
        """
        train, val = world.on_rank0(
            lambda: (read_list(path, "train", train_set), read_list(path, "val", val_set))
        )
        new_train = [image for image in train if image not in self.train]
        new_val = [image for image in val if image not in self.val]
        self.train = self.train.listed(new_train, position)
        self.val = tuple(sorted({*self.val, *new_val}))
        for split, images, new in (("train", train_set, new_train), ("val", val_set, new_val)):
            said = f"is in the list {path}"
            found = [Found(i, position, f"the image {images.path(i)} {said}") for i in new]
            self._report(split, found, world)

    def _report(self, split: str, found: list[Found], world: World) -> None:
        """Collective. Logs what has been excluded; ends the run when it is too much."""
        count = len(self.train) + len(self.val)
        for one in sorted(found, key=lambda f: (f.image, f.position)):
            where = f" at position {one.position}" if split == "train" else ""
            log.warning(
                "warning: %s; the run continues without it in %s%s (%d excluded of at most %d)",
                one.error, split, where, count, self._most,
            )  # fmt: skip
        world.raise_together(too_many(count, self._most) if count > self._most else None)


class Loaders:
    """Opens the loaders of a run of `steps`, each past the images that are `excluded` by then.

    Raises `ValueError` for a batch that does not fit the number of ranks.
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
        planner = train_planner(data, decode.normalisation)
        self.stream = TrainStream(train_set, planner, config.run.seed)

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

    def val(self) -> ValidationLoader:
        """This rank's part of the validation set."""
        excluded = frozenset(self.excluded.val)
        return open_val_loader(self._config, self._val_set, self._world, self.decode, excluded)

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
        everyone = self._world.gather_objects((found, error is not None and found is None))
        if any(hopeless for _, hopeless in everyone):
            return None
        found_by_all = [found for found, _ in everyone if found is not None]
        batch = self._config.data.global_batch_size
        self.excluded.met_in_training(found_by_all, batch, self._world)
        return lambda: self.train(step, micro)


class ValidationLoader:
    """This rank's batches of a validation, past at most data.max_excluded bad files if
    data.bad_images says so.

    Batch n of `count` holds `positions(n)`, (B,) int64 with B at most `batch_size`. What is passed
    over is added to `stream.excluded` and listed in `found`.
    """

    def __init__(
        self, stream: ValStream, positions: Callable[[int], np.ndarray], count: int,
        batch_size: int, decode: DecodeSettings, data: DataConfig,
    ) -> None:  # fmt: skip
        self._stream, self._positions, self._count = stream, positions, count
        self._batch_size, self._decode = batch_size, decode
        self._most = data.max_excluded if data.bad_images == "exclude" else None
        self._loader = self._open_from(0)
        self.found: list[Found] = []

    def _open_from(self, done: int) -> Loader:
        left = (self._positions(number) for number in range(done, self._count))
        return Loader(self._stream, left, self._count - done, self._batch_size, self._decode)

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
            self._loader.close()
            self._loader = self._open_from(done)

    def close(self) -> None:
        """Ends the loader's threads."""
        self._loader.close()


def open_val_loader(
    config: Config, val_set: ImageSet, world: World, decode: DecodeSettings,
    excluded: frozenset[int] = frozenset(),
) -> ValidationLoader:  # fmt: skip
    """Chunk c is images [c*b, (c+1)*b) with b = data.local_batch_size, at every world size."""
    batch = config.data.local_batch_size
    chunks = validation_chunks(len(val_set), batch, world.rank, world.size)
    stream = ValStream(val_set, val_planner(config.data))
    decode = decode.for_shape((config.data.image_size, config.data.image_size))
    stream.excluded = excluded

    def positions(number: int) -> np.ndarray:
        return np.arange(chunks[number] * batch, (chunks[number] + 1) * batch, dtype=np.int64)

    return ValidationLoader(stream, positions, len(chunks), batch, decode, config.data)
