"""The loops: one step, an epoch, a validation, a whole run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Literal, NoReturn

import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dali import Batch
from pipeline.model.norm import swapped_statistics
from pipeline.system.failure import Stopped, TrainingError
from pipeline.train import optimizer as stage_norms
from pipeline.train import pace, warmup
from pipeline.train import state as snapshot
from pipeline.train.excluding import agree_on_validation
from pipeline.train.feed import Feed
from pipeline.train.folder import RunFolder
from pipeline.train.job import Job
from pipeline.train.monitor.showing import show_images, show_validation, verdict
from pipeline.train.optimizer import set_lr
from pipeline.train.precision import TrainingDiverged
from pipeline.train.preflight import labels_look_permuted
from pipeline.train.validation import Inspection, validate

log = logging.getLogger("trainyard")


def fit(job: Job) -> None:
    """Trains from where `job.progress` stands to the end of the schedule.

    At the end of every epoch: save, validate, save the result. A validation that a stop left
    undone comes first. Raises `Stopped` after a signal, its checkpoint written.
    """
    with closing(job.feed()) as feed:
        job.start_clock()
        if job.validation_due:
            validate_and_save(job)
        while job.progress.step < job.total_steps:
            train_epoch(job, feed, job.next_validation_step())
            save(job)
            validate_and_save(job)


def train_epoch(job: Job, feed: Feed, until: int) -> None:
    """Steps up to step `until`; records metrics and saves on the way."""
    job.model.train()
    while job.progress.step < until:
        job.profile.before(job.progress.step)
        batch, decision = feed.next(job.progress.step, job.save_is_due())
        if decision.save or decision.stop:
            save(job, last=bool(decision.stop))
        if decision.stop:
            stop(job, decision.stop)
        show_images(job, batch)
        norms = train_step(job, batch, feed)
        job.progress.step += 1
        warmup.close_window(job)
        job.monitor.advance(job.position)
        if norms is not None:
            record(job, norms)
        every = job.config.run.checkpoint_every_steps
        if every and job.progress.step % every == 0 and job.progress.step < until:
            save(job)
        job.profile.after(job.progress.step - 1)


def stop(job: Job, by: str) -> NoReturn:
    """Collective. Leaves on all ranks together, with a word on why and where; raises `Stopped`."""
    step = job.progress.step
    log.info("stopped before step %d by %s; start again to go on", step, by)
    job.world.on_rank0(lambda: RunFolder(job.config.run.path).record_stop(by, step))
    job.world.barrier()
    raise Stopped


def train_step(job: Job, batch: Batch, feed: Feed) -> Tensor | None:
    """One optimizer step over this rank's micro-batches, of which `batch` is the first.

    Returns `stage_norms.norms` if this step's line of metrics is due.
    """
    step = job.progress.step
    set_lr(job.optimizer, job.lr(step))
    for micro in range(job.accumulation):
        if micro > 0:
            batch, _ = feed.next(step, micro=micro)
        with job.phases("forward"), job.precision.autocast():
            logits = job.forward(batch.images)
            loss = F.cross_entropy(
                logits, batch.labels, label_smoothing=job.config.optim.label_smoothing
            )
        job.averager.enabled = micro == job.accumulation - 1
        with job.phases("backward"):
            job.precision.backward(loss / job.accumulation)
        counts = job.window.add(step, loss.detach(), logits.detach(), batch.labels)
        warmup.count(job, counts)
    with job.phases("communication"):
        job.averager.synchronize()
    with job.phases("optimizer"):
        return update(job, step)


def update(job: Job, step: int) -> Tensor | None:
    """Changes the weights by the averaged gradients. Returns as `train_step` does."""
    norms = None
    if (step + 1) % job.config.run.log_every_steps == 0 or step + 1 == job.total_steps:
        job.precision.unscale_(job.optimizer)
        norms = stage_norms.norms(job.model)
    try:
        job.precision.step(job.optimizer)
    except TrainingDiverged as error:  # the average is the same everywhere: on all ranks at once
        job.world.raise_together(error)
    job.optimizer.zero_grad(set_to_none=True)
    return norms


def record(job: Job, norms: Tensor) -> None:
    """Collective. Writes the line of metrics that ends with the step before `job.progress.step`."""
    with job.phases("record"):
        require_finite(job, job.window.fold())
        totals = pace.of_all_ranks(job.world.gather(pace.of_this_rank(job)))
        job.train_top1 = totals["top1"] or 0.0
        names = stage_norms.norm_names(job.model)
        values = map(_finite, norms.tolist())  # host sync
        line = {
            "step": job.progress.step,
            "position": job.position,
            "epoch": job.epoch,
            **totals,
            "lr": job.optimizer.param_groups[0]["lr"],
            **dict(zip(names, values, strict=True)),
            "loss_scale": job.precision.scale,
            "skipped_steps": job.precision.skipped_steps,
            "excluded": len(job.progress.excluded),
        }
        job.monitor.train(line, verdict(job, line).kind)
    job.window.restart()
    job.phases.restart()


def _finite(value: float) -> float | None:
    """JSON has neither inf nor NaN, and a step that fp16 skips has such a gradient norm."""
    return value if math.isfinite(value) else None


def require_finite(job: Job, found: tuple[int, float] | None) -> None:
    """Collective. Ends the run on all ranks together when any rank saw a non-finite loss.

    `found` is (step, loss) of this rank's first one. The earliest over ranks is named: one step
    later the average has carried it everywhere.
    """
    beyond = job.total_steps
    (latest_start,) = job.world.maximum([beyond - found[0] if found else 0])
    if latest_start == 0:
        return
    error = None
    if found is not None and found[0] == beyond - latest_start:
        step, loss = found
        error = TrainingError(
            f"the loss is {loss} at step {step} with lr {job.lr(step):g}; lower optim.base_lr or "
            "lengthen schedule.warmup_epochs, and start again from the last checkpoint"
        )
    job.world.raise_together(error)


@contextmanager
def _off_the_clock(job: Job, phase: Literal["checkpoint", "validation"]) -> Iterator[None]:
    """Leaves the body's time out of the training speed."""
    started = time.perf_counter()
    with job.phases(phase, job.progress.step):
        yield
    job.window.pause(time.perf_counter() - started)


def save(job: Job, best: bool = False, last: bool = False) -> None:
    """Collective. Writes a checkpoint before `job.progress.step`; training is not changed by it.

    Never writes one that a non-finite loss has gone into. On a full disk the run goes on without,
    unless it is the `last` one of this start.
    """
    with _off_the_clock(job, "checkpoint"):
        require_finite(job, job.window.fold())
        content = snapshot.take(job)
        step = job.progress.step

        def write() -> None:
            snapshot.require_finite(content)
            write_it = job.checkpoints.save if last else job.checkpoints.save_or_wait
            write_it(step, content, best)

        job.world.on_rank0(write)
        job.saved()


def validate_and_save(job: Job) -> None:
    """Collective. Validates where the run stands, then saves again with the result."""
    with _off_the_clock(job, "validation"):
        average, spread = snapshot.average_statistics(job)
        job.model.eval()
        seen = Inspection(len(job.val_set.classes), keep_mistakes=job.world.rank == 0)
        with closing(job.val_loader()) as loader, swapped_statistics(job.model, average):
            counted = validate(
                job.forward, loader, job.precision, job.world, len(job.val_set), seen
            )
            agree_on_validation(job, loader.found)
        if not math.isfinite(counted.loss):
            job.world.raise_together(
                TrainingError(
                    f"the validation loss is {counted.loss} before step {job.progress.step}; the "
                    "training has diverged: lower optim.base_lr or lengthen schedule.warmup_epochs"
                )
            )
        result = job.place(counted)
        if labels_look_permuted(job.train_top1, result.top1, len(job.train_set.classes)):
            log.warning(
                "warning: top-1 is %.1f%% on training images and %.2f%% in validation, no better "
                "than guessing: the images of val do not lie in their classes' folders; label them "
                "anew, for ImageNet with python -m pipeline.prepare imagenet",
                100 * job.train_top1, 100 * result.top1,
            )  # fmt: skip
        best = all(result.top1 >= earlier.top1 for earlier in job.progress.history)
        job.progress.history.append(result)
        job.monitor.val(
            {
                "epoch": result.epoch,
                "step": result.step,
                "position": result.position,
                "loss": result.loss,
                "top1": result.top1,
                "top5": result.top5,
                "best_top1": max(earlier.top1 for earlier in job.progress.history),
                "images": result.images,
                "excluded": len(job.progress.excluded_val),
                "bn_spread": spread,
                **seen.class_top1(),
            }
        )
        show_validation(job, seen)
    save(job, best, last=job.finished)
