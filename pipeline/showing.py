"""What rank 0 shows of a job to people: images, mistakes, classes, and what limits the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dali import Batch
from pipeline.evaluating.tables import class_words
from pipeline.inspection import Inspection
from pipeline.monitor.pictures import caption
from pipeline.verdict import Figures, Verdict, judge

if TYPE_CHECKING:
    from pipeline.job import Job

_GRID_IMAGES = 16


def show_images(job: Job, batch: Batch) -> None:
    """A few augmented images, as the network sees them: once per epoch and start, on rank 0."""
    epoch = job.epochs_done(job.progress.step)
    if job.world.rank != 0 or job.images_shown_epoch == epoch:
        return
    job.images_shown_epoch = epoch
    job.monitor.images(_pixels(job, batch.images[:_GRID_IMAGES]), job.position)


def show_validation(job: Job, seen: Inspection) -> None:
    """What a validation got wrong, and how each class fared, on rank 0."""
    if job.world.rank != 0:
        return
    words = class_words(Path(job.config.data.root))
    names = [words.get(name, name) for name in job.val_set.classes]
    images, answers = seen.found()
    captions = [caption(names[label], names[guess], share) for label, guess, share in answers]
    job.monitor.mistakes(_pixels(job, images), captions, job.position)
    job.monitor.classes(names, seen.hits.tolist(), seen.images.tolist(), job.position)


def _pixels(job: Job, images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) as the network gets them, as (B, H, W, 3) uint8. A host sync."""
    normal = job.decode.normalisation
    shown = images.permute(0, 2, 3, 1).float().cpu().numpy()
    pixels = np.clip(shown * normal.std + normal.subtracted, 0, 255).round()
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
            gpu=on_gpu,
            compression=job.config.optim.gradient_compression,
        )
    )
