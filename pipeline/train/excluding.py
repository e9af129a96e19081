"""Going on without images whose files cannot be used (data.bad_images=exclude).

In training all ranks agree on what is excluded before any of them uses its next micro-batch, and
then take up the data at the same place. In validation each rank passes over its own bad files and
the ranks exchange them at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.dali import Loader
from pipeline.data.exclusion import Found, read_list, too_many

if TYPE_CHECKING:
    from pipeline.train.job import Job


log = logging.getLogger("trainyard")


def recover(
    job: Job, error: Exception | None, step: int, micro: int
) -> Callable[[], Loader] | None:
    """Collective, when any rank's micro-batch failed. What opens the loader to go on with from
    this very micro-batch, bad images excluded; None if the run cannot go on without them."""
    if job.config.data.bad_images != "exclude":
        return None
    positions = job.partition.positions(step, micro)
    found = None if error is None else job.stream.locate(error, positions)
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
