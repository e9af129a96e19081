"""What rank 0 shows of a job to people: images, mistakes, classes, and what limits the training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.data.classes import class_words
from pipeline.data.crops import Plan
from pipeline.data.dali import Batch, gpu_count
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.pictures import caption
from pipeline.train.validation import Inspection
from pipeline.train.verdict import Figures, Verdict, judge

if TYPE_CHECKING:
    from pipeline.train.job import Job


log = logging.getLogger("trainyard")

_GRID_IMAGES = 16


def show_images(job: Job, batch: Batch) -> None:
    """A few augmented images, as the network sees them: once per epoch and start, on rank 0."""
    epoch = job.epochs_done(job.progress.step)
    if job.world.rank != 0 or job.images_shown_epoch == epoch:
        return
    job.images_shown_epoch = epoch
    with _no_more_than_a_picture():
        shown = batch.images[:_GRID_IMAGES]
        normal = job.decode.normalisation
        subtracted = normal.subtracted
        if normal.image is not None:
            plan = job.stream.select(batch.positions[: len(shown)]).plan
            beyond = normal.mean if job.decode.decoder == "none" else None
            subtracted = mean_in_views(plan, normal.image, beyond)
        job.monitor.images(_pixels(job, shown, subtracted), job.position)


def show_validation(job: Job, seen: Inspection) -> None:
    """What a validation got wrong, and how each class fared, on rank 0."""
    if job.world.rank != 0:
        return
    with _no_more_than_a_picture():
        words = class_words(Path(job.config.data.root))
        names = [words.get(name, name) for name in job.val_set.classes]
        images, answers = seen.found()
        captions = [caption(names[label], names[guess], share) for label, guess, share in answers]
        subtracted = job.decode.normalisation.subtracted  # nothing is moved or mirrored here
        job.monitor.mistakes(_pixels(job, images, subtracted), captions, job.position)
        job.monitor.classes(names, seen.hits.tolist(), seen.images.tolist(), job.position)


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

    It comes before the mirror. Where it comes before the crop too (`data.dali.pixels`) views have,
    outside their image, `beyond` (3,); None: it is subtracted from views of its own shape.
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


def _pixels(job: Job, images: Tensor, subtracted: np.ndarray) -> np.ndarray:
    """Images (B, 3, H, W) as the network gets them, as (B, H, W, 3) uint8. A host sync."""
    shown = images.permute(0, 2, 3, 1).float().cpu().numpy()
    pixels = np.clip(shown * job.decode.normalisation.std + subtracted, 0, 255).round()
    return cast(np.ndarray, pixels.astype(np.uint8))


def verdict(job: Job, line: Mapping[str, Any]) -> Verdict:
    """What limits the training, by a line of training metrics or the medians of several."""
    ranks, on_gpu = job.world.size, job.decode.device.type == "cuda"
    return judge(
        Figures(
            reached=line["images_per_sec"] / ranks,
            data_wait_share=line["data_wait_share"],
            exposed_communication_share=line["communication_share"] if ranks > 1 else None,
            decoder=job.decode.decoder,
            threads=job.decode.threads,
            cores=job.cores,
            model_threads=0 if on_gpu else torch.get_num_threads(),
            gpu=on_gpu and gpu_count() > 0,
            compression=job.config.optim.gradient_compression,
            config=str(RunFolder(job.config.run.path).config),
        )
    )
