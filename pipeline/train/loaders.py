"""This rank's batches of a validation, past bad images if so configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pipeline.config import Config, DataConfig
from pipeline.data.batches import validation_chunks
from pipeline.data.dali import Batch, DecodeSettings, Loader
from pipeline.data.exclusion import Found, locate, too_many
from pipeline.data.images import BadImage, ImageSet
from pipeline.data.stream import ValStream, val_planner
from pipeline.ranks.world import World


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

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        done = 0
        while True:
            try:
                for batch in self._loader:
                    done += 1
                    yield batch
                return
            except BadImage as error:
                found = locate(error, self._stream, self._positions(done))
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
