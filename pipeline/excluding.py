"""Going on without images whose files cannot be used (data.bad_images=exclude).

In training all ranks agree on what is excluded before any of them uses its next micro-batch, and
then take up the data at the same place. In validation each rank passes over its own bad files and
the ranks exchange them at the end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.data.dali import Batch, Loader
from pipeline.data.image_set import ImageSet
from pipeline.data.manifest import BadImage

if TYPE_CHECKING:
    from pipeline.job import Job

log = logging.getLogger("trainyard")


@dataclass(frozen=True)
class Found:
    """An image that cannot be used, where it was met, and why."""

    image: int
    position: int
    error: str


class Placed(Protocol):
    """Which image stands at each position."""

    manifest: ImageSet

    def images(self, positions: np.ndarray) -> np.ndarray:
        """Both (B,) int64."""
        ...


def locate(error: Exception, stream: Placed, positions: np.ndarray) -> Found | None:
    """The image that made the batch at `positions` (B,) fail with `error`.

    None if nothing is to be excluded: a file that could not be read or was changed after the scan
    is as good as ever once it is put back.
    """
    if not isinstance(error, BadImage) or error.changed:
        return None
    for position, image in zip(positions, stream.images(positions), strict=True):
        if stream.manifest.path(int(image)) == error.path:
            return Found(int(image), int(position), str(error))
    return None


def recover(
    job: Job, error: Exception | None, step: int, micro: int
) -> Callable[[], Loader] | None:
    """Collective, when any rank's micro-batch failed. What opens the loader to go on with from
    this very micro-batch, bad images excluded; None if the run cannot go on without them."""
    if job.config.data.bad_images != "exclude":
        return None
    positions = job.partition.positions(step, micro)
    found = None if error is None else locate(error, job.stream, positions)
    everyone = job.world.gather_objects((found, error is not None and found is None))
    if any(hopeless for _, hopeless in everyone):
        return None
    found_by_all = [found for found, _ in everyone if found is not None]
    images_per_step = job.config.data.global_batch_size
    job.progress.excluded = job.progress.excluded.failed(
        ((one.image, one.position) for one in found_by_all), images_per_step
    )
    _note(job, "train", found_by_all)
    return lambda: job.train_loader(step, micro)


def agree_on_validation(job: Job, mine: list[Found]) -> None:
    """Collective. Makes what each rank passed over in validation known to all."""
    everyone = [found for theirs in job.world.gather_objects(mine) for found in theirs]
    # Two ranks may have met the same image, one of them in place of another that is bad, too.
    by_image = {found.image: found for found in everyone}
    if by_image:
        _exclude_val(job, list(by_image))
        _note(job, "val", list(by_image.values()))


def _exclude_val(job: Job, images: list[int]) -> None:
    job.progress.excluded_val = tuple(sorted({*job.progress.excluded_val, *images}))


def exclude_listed(job: Job) -> None:
    """Collective. Leaves out the images of the list data.exclude, from where the run stands.

    Raises `Reported` for a list that cannot be read or is of other data, naming both hashes.
    """
    if job.config.data.exclude is None:
        return
    path = Path(job.config.data.exclude)
    train, val = job.world.on_rank0(
        lambda: (read_list(path, "train", job.train_set), read_list(path, "val", job.val_set))
    )
    why = f"is in the list {path}"
    new_train = [image for image in train if image not in job.progress.excluded]
    new_val = [image for image in val if image not in job.progress.excluded_val]
    job.progress.excluded = job.progress.excluded.listed(new_train, job.position)
    _exclude_val(job, new_val)
    for split, manifest, new in (
        ("train", job.train_set, new_train),
        ("val", job.val_set, new_val),
    ):
        found = [Found(i, job.position, f"the image {manifest.path(i)} {why}") for i in new]
        _note(job, split, found)


def read_list(path: Path, split: str, manifest: ImageSet) -> list[int]:
    """The images of `split` in an exclusion list of `prepare verify`; empty if it has none.

    Raises `ValueError` if the file is no such list or describes other data.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entry = content["splits"].get(split)
        images = [] if entry is None else [int(image) for image in entry["images"]]
        digest = manifest.digest if entry is None else entry["data_hash"]
    except OSError as error:
        raise ValueError(f"data.exclude={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(_no_list(path)) from error
    if digest != manifest.digest:
        raise ValueError(
            f"data.exclude={path} was made for other data: hash of {split} {digest[:16]} there, "
            f"{manifest.digest[:16]} here; verify this data set"
        )
    if content.get("version") != 1 or not all(0 <= image < len(manifest) for image in images):
        raise ValueError(_no_list(path))
    return images


def _no_list(path: Path) -> str:
    return f"data.exclude={path} is not an exclusion list of python -m pipeline.prepare verify"


def _note(job: Job, split: str, found: list[Found]) -> None:
    """Collective. Says what has been excluded; ends the run when it is too much."""
    job.apply_exclusions()
    count, most = len(job.progress.excluded) + len(job.progress.excluded_val), _most(job)
    for one in sorted(found, key=lambda f: (f.image, f.position)):
        where = f" at position {one.position}" if split == "train" else ""
        log.warning(
            "warning: %s; the run goes on without it in %s%s (%d excluded of at most %d)",
            one.error, split, where, count, most,
        )  # fmt: skip
    job.world.raise_together(too_many(count, most) if count > most else None)


def _most(job: Job) -> int:
    return job.config.data.max_excluded


def too_many(count: int, most: int) -> ValueError:
    """What ends a run that excludes more than it may."""
    return ValueError(
        f"{count} images are excluded and data.max_excluded={most}; check the data set with "
        "python -m pipeline.prepare verify, or allow more"
    )


class ValidationLoader:
    """This rank's batches of a validation, past at most `most` bad files; None: past none.

    `open_from(chunk)` makes the loader of the chunks from `chunk` on, (B,) positions each given by
    `positions(chunk)`. What is passed over is added to `stream.excluded` and listed in `found`.
    """

    def __init__(
        self, stream: ValStreamLike, open_from: Callable[[int], Loader],
        positions: Callable[[int], np.ndarray], most: int | None,
    ) -> None:  # fmt: skip
        self._stream, self._open_from, self._positions = stream, open_from, positions
        self._most = most
        self._loader = open_from(0)
        self.found: list[Found] = []

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


class ValStreamLike(Placed, Protocol):
    """A validation stream, which can leave images out."""

    excluded: frozenset[int]
