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
from pipeline.data.manifest import BadImage, Manifest

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

    manifest: Manifest

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


def recover(job: Job, error: Exception | None, step: int, micro: int) -> Loader | None:
    """Collective, when any rank's micro-batch failed. The loader to go on with from this very
    micro-batch, the bad images excluded; None if the run cannot go on without them."""
    if job.config.data.bad_images != "exclude":
        return None
    positions = job.partition.positions(step, micro)
    found = None if error is None else locate(error, job.stream, positions)
    everyone = job.world.gather_objects((found, error is not None and found is None))
    if any(hopeless for _, hopeless in everyone):
        return None
    _exclude(job, "train", [found for found, _ in everyone if found is not None])
    return job.train_loader(step, micro)


def agree_on_validation(job: Job, mine: list[Found]) -> None:
    """Collective. Makes what each rank passed over in validation known to all."""
    everyone = [found for theirs in job.world.gather_objects(mine) for found in theirs]
    if everyone:
        _exclude(job, "val", everyone)


def exclude_listed(job: Job) -> None:
    """Collective. Leaves out the images of the list data.exclude, from where the run stands.

    Raises `Reported` for a list that cannot be read or is of other data, naming both hashes.
    """
    if job.config.data.exclude is None:
        return
    path = Path(job.config.data.exclude)
    listed = job.world.on_rank0(
        lambda: {
            split: read_list(path, split, manifest)
            for split, manifest in (("train", job.train_set), ("val", job.val_set))
        }
    )
    known = {image for image, _ in job.progress.excluded.pairs()}
    reason = f"it is in the list {path}"
    for split, position, old in (
        ("train", job.position, known),
        ("val", 0, set(job.progress.excluded_val)),
    ):
        manifest = job.train_set if split == "train" else job.val_set
        new = [
            Found(image, position, f"the image {manifest.path(image)} is left out: {reason}")
            for image in listed[split]
            if image not in old
        ]
        if new:
            _exclude(job, split, new)


def read_list(path: Path, split: str, manifest: Manifest) -> list[int]:
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
        raise ValueError(
            f"data.exclude={path} is not an exclusion list of python -m pipeline.prepare verify"
        ) from error
    if digest != manifest.digest:
        raise ValueError(
            f"data.exclude={path} was made for other data: hash of {split} {digest[:16]} there, "
            f"{manifest.digest[:16]} here; verify this data set"
        )
    return images


def _exclude(job: Job, split: str, found: list[Found]) -> None:
    """Collective. Takes the images into the run's record; ends the run when they are too many."""
    progress = job.progress
    if split == "train":
        progress.excluded = progress.excluded.extended((f.image, f.position) for f in found)
    else:
        progress.excluded_val = tuple(sorted({*progress.excluded_val, *(f.image for f in found)}))
    job.apply_exclusions()
    count, most = len(progress.excluded) + len(progress.excluded_val), job.config.data.max_excluded
    for one in sorted(found, key=lambda f: f.image):
        log.warning(
            "warning: %s; the run goes on without it from position %d of %s on (%d excluded of "
            "at most %d)", one.error, one.position, split, count, most,
        )  # fmt: skip
    too_many = None
    if count > most:
        too_many = ValueError(
            f"{count} images are excluded and data.max_excluded={most}; check the data set with "
            "python -m pipeline.prepare verify, or allow more"
        )
    job.world.raise_together(too_many)


class ValidationLoader:
    """This rank's batches of a validation, past bad files if `forgiving`.

    `open_from(chunk)` makes the loader of the chunks from `chunk` on, (B,) positions each given by
    `positions(chunk)`. What is passed over is added to `stream.excluded` and listed in `found`.
    """

    def __init__(
        self, stream: ValStreamLike, open_from: Callable[[int], Loader],
        positions: Callable[[int], np.ndarray], forgiving: bool,
    ) -> None:  # fmt: skip
        self._stream, self._open_from, self._positions = stream, open_from, positions
        self._forgiving = forgiving
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
                if found is None or not self._forgiving:
                    raise
            self.found.append(found)
            self._stream.excluded |= {found.image}
            self._loader.close()
            self._loader = self._open_from(done)

    def close(self) -> None:
        """Ends the loader's threads."""
        self._loader.close()


class ValStreamLike(Placed, Protocol):
    """A validation stream, which can leave images out."""

    excluded: frozenset[int]
