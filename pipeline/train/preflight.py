"""Checks before the first step, which cost seconds and save days."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
import torch

from pipeline.config import DataConfig
from pipeline.data.dali import DecodeSettings
from pipeline.data.images import BadImage, ImageSet
from pipeline.data.passes import Passes
from pipeline.data.stream import ValStream, largest_planner
from pipeline.system.failure import TrainingError
from pipeline.train.state import TrainState

log = logging.getLogger("trainyard")

# (classes, training images, validation images) of ILSVRC 2012 as its archives hold them.
IMAGENET_1K = (1000, 1_281_167, 50_000)
_TRIES = 10


def require_complete(config: DataConfig, train_set: ImageSet, val_set: ImageSet) -> None:
    """Raises `ValueError` if data.dataset is imagenet-1k and this is not all of it."""
    if config.dataset != "imagenet-1k":
        return
    names = ("classes", "training images", "validation images")
    found = (len(train_set.classes), len(train_set), len(val_set))
    wrong = [
        f"{has:,} {name} instead of {wanted:,}"
        for name, has, wanted in zip(names, found, IMAGENET_1K, strict=True)
        if has != wanted
    ]
    if wrong:
        raise ValueError(
            f"{config.root} is not the whole of {config.dataset}: {', '.join(wrong)}; complete it, "
            "or set data.dataset=null for another data set"
        )


def require_classes(config: DataConfig, train_set: ImageSet) -> None:
    """Raises `ValueError` for a single class: every guess is right, and nothing is learnt."""
    if len(train_set.classes) < 2:
        raise ValueError(
            f"{config.root} has images of one class alone, {', '.join(train_set.classes)}, and a "
            "network tells two or more apart; give each class a folder of its own in train and val"
        )


def decode_largest(
    manifest: ImageSet, config: DataConfig, passes: Passes, without: Collection[int] = ()
) -> None:
    """Decodes one full batch of the largest images on this rank's decoder, to the largest size that
    training or validation has, so that memory runs out now and not in the middle of an epoch.
    `passes` are of a validation's views.

    Leaves out `without`, and files that cannot be used, which are left for their turn. Raises
    `ValueError` if nothing is left, `TrainingError` with the fix if memory does not suffice.
    """
    pixels = manifest.widths.astype(np.int64) * manifest.heights
    enough = min(len(manifest), config.local_batch_size + len(without) + _TRIES)
    candidates = np.argpartition(pixels, len(pixels) - enough)[-enough:]
    candidates = candidates[np.argsort(-pixels[candidates], kind="stable")]
    order = [int(i) for i in candidates if int(i) not in without]
    if not order:
        raise ValueError(
            f"all {len(manifest)} images of {manifest.split} are excluded; repair the files and "
            "start a new run, or take images off the list data.exclude"
        )
    batch = min(config.local_batch_size, len(order))
    stream = ValStream(manifest, largest_planner(config))
    for _ in range(_TRIES):
        largest = np.array(order[:batch], dtype=np.int64)
        try:
            next(passes.open(stream, [largest], 1))
        except BadImage as error:
            order = [i for i in order if manifest.path(i) != error.path]
            batch = min(batch, len(order))
            if not order:
                return
        except (RuntimeError, MemoryError) as error:
            raise TrainingError(
                f"a batch of the {batch} largest images of {manifest.split}, up to "
                f"{manifest.widths[order[0]]} x {manifest.heights[order[0]]} pixels "
                f"({manifest.path(order[0])}), cannot be decoded: {error}"
            ) from error
        else:
            return


def try_step(state: TrainState, decode: DecodeSettings, images: int, size: int) -> None:
    """Runs forward and backward on a micro-batch of `images` of `size` pixels a side, on black
    ones, so that the memory of the largest size is tried before the first step.

    Changes nothing: gradients are thrown away without a hook having seen them, BN's statistics are
    put back, and nothing is drawn at random. PyTorch keeps the memory for the step that needs it.
    Raises `TrainingError` with the fix if memory does not suffice.
    """
    model, device = state.model, decode.device
    was_training, buffers = model.training, list(model.buffers())
    kept = [buffer.clone() for buffer in buffers]
    parameters = [one for one in model.parameters() if one.requires_grad]
    model.train()
    try:
        with state.window.memory.not_of_dali():
            dtype = torch.float16 if decode.output == "float16" else torch.float32
            pixels = torch.zeros(images, size, size, 3, dtype=dtype, device=device)
            with state.precision.autocast():
                scores = state.forward(pixels.permute(0, 3, 1, 2)).sum()
            torch.autograd.grad(scores, parameters, allow_unused=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise TrainingError(
            f"a micro-batch of {images} images of {size} pixels a side, the largest of "
            f"data.image_sizes, cannot be trained: {reason}; lower data.local_batch_size, which "
            "leaves the images of a step as they are"
        ) from error
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)
        model.train(was_training)
