"""Test images in batches, each batch drawn once for every view.

Which images make up a chunk depends on the data and the settings alone, not on the number of ranks,
so that a network sees the same batches, and gives the same bits, on any number of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import Config
from pipeline.data.crops import Plan, Planner, WholeImage, whole_boxes
from pipeline.data.dali import DecodeSettings
from pipeline.data.images import ImageSet
from pipeline.data.passes import Passes, ValidationLoader
from pipeline.data.stream import ValStream
from pipeline.evaluate.protocol import ViewProtocol
from pipeline.ranks.world import World
from pipeline.train.loaders import open_val_loader, val_passes


class ViewStream(ValStream):
    """The stream of views: position v * N + i is view v of image i of N.

    The positions of a batch are of one view, and where that is a `WholeImage`, their images have
    one size in source pixels. The stand-in of an excluded image is squeezed into its shape.
    """

    def __init__(self, manifest: ImageSet, views: Sequence[Planner]) -> None:
        super().__init__(manifest, views[0])
        self.views = views

    def images(self, positions: np.ndarray) -> np.ndarray:
        """The images at `positions`, both (B,) int64: their own, or the next that can be read."""
        return super().images(positions % len(self.image_set))

    def _labels(self, positions: np.ndarray, images: np.ndarray) -> np.ndarray:
        return super()._labels(positions % len(self.image_set), images)

    def _plan(self, positions: np.ndarray, images: np.ndarray) -> Plan:
        manifest = self.image_set
        view, own = int(positions[0]) // len(manifest), positions % len(manifest)
        plan = self.views[view].plan(manifest.heights[own], manifest.widths[own])
        replaced = images != own
        shown = images[replaced]
        plan.boxes[replaced] = whole_boxes(manifest.heights[shown], manifest.widths[shown])
        return plan


def size_chunks(
    manifest: ImageSet, most_pixels: int, views: Sequence[WholeImage]
) -> list[np.ndarray]:
    """Image indices in chunks of one image size, so that each view of a chunk has one shape.

    A chunk has at most `most_pixels` pixels in its largest view, but at least one image.
    """
    heights, widths = np.asarray(manifest.heights), np.asarray(manifest.widths)
    order = np.lexsort((widths, heights))  # stable: equal sizes stay in the order of the images
    change = (np.diff(heights[order]) != 0) | (np.diff(widths[order]) != 0)
    chunks = []
    for same in np.split(order.astype(np.int64), np.flatnonzero(change) + 1):
        pixels = max(_pixels(manifest, same[:1], view) for view in views)
        count = max(1, most_pixels // pixels)
        chunks += [same[start : start + count] for start in range(0, len(same), count)]
    return chunks


def _pixels(manifest: ImageSet, images: np.ndarray, view: WholeImage) -> int:
    high, wide = view.shapes(manifest.heights[images], manifest.widths[images])
    return int((high * wide).sum())


def own_chunks(costs: Sequence[int], rank: int, world_size: int) -> range:
    """The chunks that a rank takes: contiguous, about equal in the sum of their `costs`.

    Each chunk is taken exactly once over all ranks. A rank may get none.
    """
    middles = np.cumsum(costs) - np.asarray(costs) / 2
    owners = (middles * world_size / max(1, sum(costs))).astype(np.int64)
    mine = np.flatnonzero(owners == rank)
    return range(int(mine[0]), int(mine[-1]) + 1) if len(mine) else range(0)


def open_loader(
    config: Config, val_set: ImageSet, world: World, decode: DecodeSettings,
    protocol: ViewProtocol, excluded: frozenset[int],
) -> ValidationLoader:  # fmt: skip
    """This rank's part of `val_set`: each chunk of images once for every view in turn, so that
    batch n is view n % views."""
    if protocol.name == "1-crop":
        passes = val_passes(config.data, decode)
        return open_val_loader(config, val_set, world, passes, excluded)
    size = config.data.view_size
    views, batch = protocol.views(config), config.data.local_batch_size
    whole = [view for view in views if isinstance(view, WholeImage)]
    if whole:
        chunks = size_chunks(val_set, batch * size**2, whole)
        costs = [sum(_pixels(val_set, chunk, view) for view in whole) for chunk in chunks]
    else:
        every = np.arange(len(val_set), dtype=np.int64)
        chunks = [every[start : start + batch] for start in range(0, len(every), batch)]
        costs = [len(chunk) for chunk in chunks]
    mine = own_chunks(costs, world.rank, world.size)
    stream = ViewStream(val_set, views)
    stream.excluded = excluded
    total = len(mine) * len(views)
    largest = max((len(chunk) for chunk in chunks), default=1)

    def positions(number: int) -> np.ndarray:
        chunk, view = divmod(number, len(views))
        return chunks[mine[chunk]] + view * len(val_set)

    passes = Passes(largest, decode.for_shape(None if whole else (size, size)))
    return ValidationLoader(stream, positions, total, passes, config.data)
