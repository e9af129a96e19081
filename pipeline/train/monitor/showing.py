"""What rank 0 shows of a training to people: images, mistakes, classes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor

from pipeline.data.classes import class_words
from pipeline.data.crops import Plan
from pipeline.data.dali import Batch, DecodeSettings
from pipeline.data.normalisation import Normalisation
from pipeline.data.stream import ImageStream
from pipeline.train.monitor.monitor import Monitor
from pipeline.train.monitor.pictures import caption
from pipeline.train.validation import Inspection

log = logging.getLogger("trainyard")

_GRID_IMAGES = 16


class Showing:
    """Draws the images of batches of `stream`, made as `decode` says, through `monitor`.

    `classes` are named by the words in the data set's folder `root` where it has them.
    """

    def __init__(
        self, monitor: Monitor, decode: DecodeSettings, stream: ImageStream,
        classes: Sequence[str], root: Path,
    ) -> None:  # fmt: skip
        self._monitor, self._decode, self._stream = monitor, decode, stream
        self._classes, self._root = classes, root
        self._epoch: int | None = None  # whose first images were shown since this start

    def images(self, batch: Batch, epoch: int, position: int) -> None:
        """A few augmented images, as the network sees them: once per epoch and start."""
        if self._epoch == epoch:
            return
        self._epoch = epoch
        with _no_more_than_a_picture():
            shown = batch.images[:_GRID_IMAGES]
            normal = self._decode.normalisation
            subtracted = normal.subtracted
            if normal.image is not None:
                plan = self._stream.select(batch.positions[: len(shown)]).plan
                beyond = normal.mean if self._decode.decoder == "none" else None
                subtracted = mean_in_views(plan, normal.image, beyond)
            self._monitor.images(_pixels(shown, normal, subtracted), position)

    def validation(self, seen: Inspection, position: int) -> None:
        """What a validation got wrong, and how each class fared."""
        with _no_more_than_a_picture():
            words = class_words(self._root)
            names = [words.get(name, name) for name in self._classes]
            images, answers = seen.found()
            captions = [caption(names[a], names[guess], share) for a, guess, share in answers]
            normal = self._decode.normalisation
            # Nothing is moved or mirrored here.
            pixels = _pixels(images, normal, normal.subtracted)
            self._monitor.mistakes(pixels, captions, position)
            self._monitor.classes(names, seen.hits.tolist(), seen.images.tolist(), position)


@contextmanager
def _no_more_than_a_picture() -> Iterator[None]:
    """Only rank 0 draws, and the others are on their way into the next collective: what goes wrong
    here costs the picture and a warning, not the run."""
    try:
        yield
    except Exception as error:
        log.warning("warning: a picture for TensorBoard is left out: %s", error)


def mean_in_views(plan: Plan, image: np.ndarray, beyond: np.ndarray | None) -> np.ndarray:
    """The mean `image` (H, W, 3) as it was subtracted from each view of `plan`: (B, h, w, 3).

    It comes before the mirror. Where it comes before the crop too (images that are pixels already)
    views have, outside their image, `beyond` (3,); None: it is subtracted from views of its own
    shape.
    """
    height, width = plan.shape
    views = np.empty((len(plan.flips), height, width, 3), np.float32)
    for view, (y, x), flip in zip(views, plan.boxes[:, :2].astype(int), plan.flips, strict=True):
        if beyond is None:
            view[:] = image
        else:
            view[:] = beyond
            part = image[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
            top, left = max(0, -y), max(0, -x)
            view[top : top + part.shape[0], left : left + part.shape[1]] = part
        if flip:
            view[:] = view[:, ::-1].copy()
    return views


def _pixels(images: Tensor, normal: Normalisation, subtracted: np.ndarray) -> np.ndarray:
    """Images (B, 3, H, W) as the network gets them, as (B, H, W, 3) uint8. A host sync."""
    shown = images.permute(0, 2, 3, 1).float().cpu().numpy()
    pixels = np.clip(shown * normal.std + subtracted, 0, 255).round()
    return cast(np.ndarray, pixels.astype(np.uint8))
