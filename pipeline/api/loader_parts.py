"""The parts of a loader: its device, the numbers of its batches, its stream, and bad files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.api.loader_settings import Asked
from pipeline.config import DataConfig, require
from pipeline.data.batches import Epochs, Partition, StepEpochs, ValidationEpochs
from pipeline.data.exclusion import Found, read_list, too_many
from pipeline.data.images import ImageSet
from pipeline.data.index.survey import SPLITS
from pipeline.data.normalisation import Normalisation
from pipeline.data.opening import open_split
from pipeline.data.passes import exclude_from
from pipeline.data.sizes import Sizes
from pipeline.data.stream import TrainStream, ValStream, train_stream, val_planner

log = logging.getLogger("trainyard")


def require_imagenet(data: DataConfig) -> None:
    """Raises `ValueError` unless both splits are all of ImageNet."""
    from pipeline.train.preflight import require_complete  # brings all that trains

    train_set, val_set = (open_split(data, split)[0] for split in SPLITS)
    require_complete(data, train_set, val_set)


def epochs_of(asked: Asked, images: ImageSet, drop_last: bool) -> Epochs:
    """The numbers of this rank's batches. Raises `ConfigError` if there would be none."""
    data = asked.data
    if images.split == "val":
        return ValidationEpochs(len(images), data.local_batch_size, asked.rank, asked.world_size)
    require(
        not drop_last or len(images) >= data.global_batch_size,
        f"drop_last=True leaves nothing of {len(images)} images, fewer than "
        f"data.global_batch_size={data.global_batch_size}; lower it, or set drop_last=False",
    )
    partition = Partition(
        data.global_batch_size, data.local_batch_size, asked.rank, asked.world_size
    )
    return StepEpochs(len(images), partition, drop_last)


def stream_of(
    asked: Asked, images: ImageSet, normalisation: Normalisation, drop_last: bool
) -> TrainStream | ValStream:
    """What stands at each position of `images`. Raises `ValueError` for a class without images
    where each has its turn."""
    data = asked.data
    if images.split == "val":
        return ValStream(images, val_planner(data))
    sizes = None
    if data.image_sizes is not None and len(data.image_sizes) > 1:
        starts = tuple(
            (epoch * len(images), side) for epoch, side in sorted(data.image_sizes.items())
        )
        # Where epochs begin anew, no step reaches into the next.
        sizes = Sizes(starts, 1 if drop_last else data.global_batch_size)
    return train_stream(images, data, asked.seed, normalisation, sizes)


def leave_out_listed(stream: TrainStream | ValStream, data: DataConfig, position: int) -> None:
    """Leaves out the images of the list data.exclude, if there is one, from `position` on. Raises
    `ValueError` for one of other data, or of more than data.max_excluded."""
    if data.exclude is None:
        return
    images = stream.image_set
    listed = read_list(Path(data.exclude), images.split, images)
    if isinstance(stream, ValStream):
        stream.excluded |= frozenset(listed)
        count = len(stream.excluded)
    else:
        stream.exclusions = stream.exclusions.listed(listed, position)
        count = len(stream.exclusions)
    if count > data.max_excluded:
        raise too_many(count, data.max_excluded)


def bad_files(
    stream: TrainStream | ValStream, data: DataConfig
) -> Callable[[Found], object] | None:
    """What goes on without a bad file, if data.bad_images says so.

    Each rank leaves out those that it meets itself. At a position stands the next image that can be
    used, whichever bad ones were known before, so that the ranks need not tell each other.
    """
    if data.bad_images != "exclude":
        return None

    def leave_out(found: Found) -> None:
        if isinstance(stream, ValStream):
            exclude_from(stream, found, data)
            count = len(stream.excluded)
        else:
            place = [(found.image, found.position)]
            stream.exclusions = stream.exclusions.failed(place, data.global_batch_size)
            count = len(stream.exclusions)
        log.warning(
            "warning: %s; %s goes on without it (%d excluded of at most %d)",
            found.error, stream.image_set.split, count, data.max_excluded,
        )  # fmt: skip
        if count > data.max_excluded:
            raise too_many(count, data.max_excluded)

    return leave_out
