"""One training run from start to end: agree, open the data, lock, resume, fit, sum up."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.config.effect import idle_settings
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.opening import open_data
from pipeline.data.order import order_digest
from pipeline.data.statistics import normalisation_of
from pipeline.model.network import network_name
from pipeline.ranks.connect import connect
from pipeline.ranks.places import choose_device, own_share, set_threads
from pipeline.ranks.stop import StopSignal
from pipeline.ranks.watchdog import watched
from pipeline.system.console import start_logging
from pipeline.system.files import Room, replacing
from pipeline.system.machine import versions
from pipeline.system.text import counted
from pipeline.train import state as snapshot
from pipeline.train import trainer as engine
from pipeline.train.checkpoint import read_verified, require_same_run
from pipeline.train.excluding import exclude_listed
from pipeline.train.folder import RunFolder
from pipeline.train.job import Job
from pipeline.train.lock import first_cause_kept, locked, tell_hang
from pipeline.train.monitor.monitor import RunMonitor
from pipeline.train.monitor.showing import verdict
from pipeline.train.preflight import decode_largest_of_both, require_complete
from pipeline.train.profile import open_profile

log = logging.getLogger("trainyard")


def run(config: Config) -> None:
    """Trains as `config` says; every way it can end is in `pipeline.system.failure`."""
    world = connect(config.run.step_timeout_sec, timeline=config.profile is not None)
    start_logging(world.rank)
    with StopSignal() as stop:
        world.require_same(_facts(config))
        share = own_share(world)
        set_threads(config, share)
        with locked(config.run.path, world) as folder, first_cause_kept(folder, world):
            train_set, val_set = open_data(config, world)
            world.together(lambda: require_complete(config.data, train_set, val_set))
            device = world.together(lambda: choose_device(config.run.device, share.gpu))
            normalisation = world.together(lambda: normalisation_of(config.data, train_set))
            decode = world.together(
                lambda: choose_decoding(config, device, share, (train_set, val_set), normalisation)
            )
            job = world.together(lambda: Job(config, world, decode, train_set, val_set, stop))
            job.cores = share.cores
            world.require_same(job.facts)
            resume(job)
            exclude_listed(job)
            world.together(lambda: decode_largest_of_both(job))
            if job.finished and world.on_rank0(lambda: bool(folder.last("done"))):
                log.info("the run in %s is finished: %s", folder.path, _reached(job))
                return
            job.profile = open_profile(job)
            world.on_rank0(lambda: _open_files(job, folder))
            limit_sec = config.run.step_timeout_sec
            tell = partial(tell_hang, folder, world.rank)
            with (
                contextlib.closing(job.monitor),
                watched(folder.stacks, world, limit_sec, tell),
            ):
                if not job.finished:
                    with job.profile:
                        engine.fit(job)
                world.heartbeat.beat("end")
                _sum_up(job, folder)
            world.barrier()


def _facts(config: Config) -> dict[str, Any]:
    """What must be the same on every rank before anything else is worth doing."""
    known = {name: version for name, version in versions().items() if version != "unknown"}
    return {"configuration": hashlib.sha256(config.to_yaml().encode()).hexdigest()[:16], **known}


def resume(job: Job) -> None:
    """Collective. Puts every rank where the run stands: at its checkpoint, or at rank 0's
    initial weights."""
    content = job.world.on_rank0(lambda: _find_checkpoint(job))
    snapshot.restore(job, content or job.world.broadcast_object(snapshot.take(job)))


def _find_checkpoint(job: Job) -> dict[str, Any] | None:
    """What `--resume` points to, checked to belong to this run; None for a new run."""
    choice, folder = job.config.resume, job.config.run.path
    origin = RunFolder(folder).origin
    started_from = origin.read_text(encoding="utf-8") if origin.exists() else None
    holds_run = bool(job.checkpoints.steps()) or RunFolder(folder).metrics.exists()
    if choice == "none":
        if holds_run:
            raise ValueError(
                f"{folder} already holds a run and --resume is none; choose another run.name, or "
                "--resume auto to go on"
            )
        return None
    if choice == "auto" or (holds_run and str(Path(choice).resolve()) == started_from):
        found = job.checkpoints.latest()
        if found is None:
            return None
        path, content = found
    else:
        path = Path(choice)
        content = read_verified(path)
        if holds_run and path.resolve().parent != job.checkpoints.folder.resolve():
            raise ValueError(
                f"{folder} already holds another run than --resume {path}; choose another run.name"
            )
    wanted = snapshot.compared(job.fingerprint, job.config)
    require_same_run(path, content["fingerprint"], wanted)
    if not holds_run:
        # From here on the run stands on its own, and the same command goes on with it.
        origin.write_text(str(path.resolve()), encoding="utf-8")
        job.checkpoints.save(content["step"], content)
    log.info("resuming from %s at step %d", path, content["step"])
    job.checkpoints.forget_after(content["step"])
    _mend_best(job, content)
    return content


def _mend_best(job: Job, content: dict[str, Any]) -> None:
    """Gives the best checkpoint its second name, which a kill right after the save prevented."""
    correct = [result["top1_correct"] for result in content["history"]]
    path = job.checkpoints.path(content["step"])
    is_result = bool(correct) and content["history"][-1]["step"] == content["step"]
    if is_result and correct[-1] == max(correct) and path.exists():
        try:
            job.checkpoints.link_best(path)
        except OSError as error:  # a full disk; the run itself can go on
            log.warning(
                "warning: %s cannot be written: %s; make room there: the training goes on",
                job.checkpoints.best, error.strerror,
            )  # fmt: skip


def _open_files(job: Job, folder: RunFolder) -> None:
    """On rank 0: the files of the run, and what is to be known of its start."""
    config = job.config
    header = "".join(f"# {name}: {value}\n" for name, value in job.versions.items())
    with replacing(folder.config) as new:  # who looks at the run must not see half of it
        new.write_text(header + config.to_yaml(), encoding="utf-8")
    total_images = job.total_steps * config.data.global_batch_size
    job.monitor = RunMonitor(
        folder, config, job.position, len(job.progress.history), total_images,
        Room(folder.path, snapshot.size_bytes(job)),
    )  # fmt: skip
    job.monitor.start(_start(job))
    ranks = counted(job.world.size, "rank")
    decoding = f"JPEG decoding on the {job.decode.decoder.upper()}"
    if job.decode.decoder == "none":
        decoding = "images that need no decoding"
    log.info(
        "run %s: %s on %s (%s), %s, %s",
        folder.path, network_name(config.model), ranks, job.decode.device,
        f"AMP {config.optim.amp}", decoding,
    )  # fmt: skip
    log.info(
        "data: %d train and %d val images, %d classes, hash %s",
        len(job.train_set), len(job.val_set), len(job.train_set.classes),
        job.train_set.digest[:16],
    )  # fmt: skip
    log.info(
        "batch: %d = %s x %s x %d accumulated; steps %d to %d",
        config.data.global_batch_size, ranks, counted(job.partition.micro_batch_size, "image"),
        job.accumulation, job.progress.step, job.total_steps,
    )  # fmt: skip
    if idle := idle_settings(config):
        log.info("without effect: %s", idle)
    log.info("schedule: %s", job.schedule.describe(config.data.global_batch_size))
    order = order_digest(config.run.seed, job.epoch, len(job.train_set))
    log.info("order of epoch %d: %s", job.epoch, order)


def _start(job: Job) -> dict[str, Any]:
    """What readers of the run are told of this start, in its `start` event."""
    return {
        "step": job.progress.step,
        "position": job.position,
        "total_steps": job.total_steps,
        "ranks": job.world.size,
        "global_batch_size": job.config.data.global_batch_size,
        "micro_batch_size": job.partition.micro_batch_size,
        "accumulation": job.accumulation,
        "train_images": len(job.train_set),
        "val_images": len(job.val_set),
        "classes": len(job.train_set.classes),
        "network": network_name(job.config.model),
        "device": str(job.decode.device),
        "decoder": job.decode.decoder,
        "versions": job.versions,
    }


def _reached(job: Job) -> str:
    if not job.progress.history:
        return "no validation"
    last = job.progress.history[-1]
    best = max(result.top1 for result in job.progress.history)
    return f"top-1 {last.top1:.2%}, top-5 {last.top5:.2%} (best top-1 {best:.2%})"


def against_expectation(top1: float, expected: float) -> str:
    """What the end of a run says of `run.expect_top1`."""
    if top1 >= expected:
        return f"as expected: top-1 {top1:.2%} reaches the {expected:.2%} of run.expect_top1"
    return (
        f"below expectation: top-1 {top1:.2%} is {100 * (expected - top1):.2f} points under the "
        f"{expected:.2%} of run.expect_top1"
    )


def _sum_up(job: Job, folder: RunFolder) -> None:
    """The run's last line of metrics, and the closing words for a person."""
    last = job.progress.history[-1]
    job.monitor.done(
        {
            "step": job.progress.step,
            "position": job.position,
            "epoch": job.epoch,
            "top1": last.top1,
            "top5": last.top5,
            "best_top1": max(result.top1 for result in job.progress.history),
        }
    )
    if job.world.rank != 0:
        return
    train = [line for line in folder.lines() if line["event"] == "train"]
    log.info("finished: %s", _reached(job))
    expected = job.config.run.expect_top1
    if expected is not None:
        log.info("%s", against_expectation(last.top1, expected))
    if train:
        # An older line of the same run may have fewer fields.
        names = ("images_per_sec", "data_wait_share", "communication_share")
        median = {name: statistics.median(line.get(name, 0.0) for line in train) for name in names}
        log.info(
            "speed: %.0f img/s (median), data wait %.1f%% of the step",
            median["images_per_sec"], 100 * median["data_wait_share"],
        )  # fmt: skip
        log.info("limited by: %s", verdict(job, median))
    log.info(
        "the run lies in %s; look at it with: tensorboard --logdir %s",
        folder.path, folder.path.parent,
    )  # fmt: skip
