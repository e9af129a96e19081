"""Runs one training from start to end: agree, open the data, lock, resume, fit, sum up."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.config.idle import shown_idle
from pipeline.data.dali import DecodeSettings, gpu_count
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.opening import open_data
from pipeline.data.statistics import normalisation_of
from pipeline.model.network import network_name
from pipeline.model.norm import norm_layers
from pipeline.ranks import connect
from pipeline.ranks.addresses import warn_if_open
from pipeline.ranks.places import Share, own_share, take_share
from pipeline.ranks.reports import Limit, start_limit
from pipeline.ranks.watchdog import Watchdog, watched
from pipeline.ranks.world import World
from pipeline.system.console import counted, start_logging
from pipeline.system.failure import Stopped, StopSignal
from pipeline.system.files import Room, replacing
from pipeline.system.launched import launched
from pipeline.system.machine import versions
from pipeline.system.words import shell_word
from pipeline.train.access import explained
from pipeline.train.folder import RunFolder
from pipeline.train.freezing import trained_share
from pipeline.train.gpu import described
from pipeline.train.init import start_facts, warn_of_drawn_weights
from pipeline.train.lock import first_cause_kept, locked, record_hang
from pipeline.train.metrics import Validation, counts_top5
from pipeline.train.monitor.loggers import require_installed
from pipeline.train.monitor.monitor import RunMonitor
from pipeline.train.monitor.observer import Observer
from pipeline.train.monitor.pictures import Pictures
from pipeline.train.monitor.sender import DONE_SEC
from pipeline.train.preflight import decode_largest, require_classes, require_complete, try_step
from pipeline.train.profile import open_profile
from pipeline.train.resuming import resume
from pipeline.train.state import TrainState, choose_sums
from pipeline.train.trainer import Trainer
from pipeline.train.verdict import Figures, judge, seen

log = logging.getLogger("trainyard")


@dataclass(frozen=True)
class Ended:
    """How a start of a run ended, the same on every rank."""

    folder: RunFolder
    stopped: str | None
    """The signal that stopped it before `step`, its checkpoint written; None: it is finished."""
    step: int
    total_steps: int
    history: tuple[Validation, ...]
    """Every validation of the run, those of earlier starts too."""


def run(config: Config, stop: StopSignal | None = None, observers: Sequence[Observer] = ()) -> None:
    """As `train`. Raises `Stopped` after a signal. `stop` is one that listens already."""
    if stop is None:
        with StopSignal() as listening:
            return run(config, listening, observers)
    ended = train(config, stop, observers)
    if ended.stopped is not None:
        raise Stopped(ended.stopped)


def train(
    config: Config, stop: StopSignal, observers: Sequence[Observer] = (), watch: bool = True
) -> Ended:
    """Trains as `config` says; every way it can fail is in `pipeline.system.failure`. `observers`
    see on rank 0 what the run writes. Without `watch` no watchdog ends the process if it hangs."""
    quiet = choose_sums(config, torch.device("cpu")) == "fixed"
    world = connect(config.run.step_timeout_sec, config.profile is not None, quiet)
    stop.hold()
    start_logging(world.rank)
    warn_if_open(launched().engine)
    with watched(world, start_limit(config.run.start_timeout_sec), watch) as watchdog:
        world.require_same(_facts(config))
        world.on_rank0(lambda: require_installed(config.run.loggers))
        share = own_share(world)
        with (
            locked(config.run.path, world) as folder,
            first_cause_kept(folder, world),
            contextlib.ExitStack() as held,
        ):
            watchdog.move(
                folder.stacks / world.start,
                world,
                partial(record_hang, folder, world.rank, world.start),
            )
            trainer = _open(config, world, share, stop, held)
            held.callback(_close_monitor, trainer, watchdog)
            if trainer.finished and world.on_rank0(lambda: bool(folder.last("done"))):
                log.info("the run in %s is finished: %s", folder.path, _reached(trainer.state))
                return _ended(trainer, None)
            trainer.profile = open_profile(
                config, trainer.state, trainer.course.total_steps, world, trainer.phases,
                on_gpu=trainer.decode.device.type == "cuda",
            )  # fmt: skip
            trainer.figures = _known_figures(config, trainer.decode, share.cores)
            world.on_rank0(explained(folder)(lambda: _open_files(trainer, observers)))
            return _ended(trainer, _fit(trainer, watchdog))


def _fit(trainer: Trainer, watchdog: Watchdog) -> str | None:
    """Collective. Trains to the end and sums up; returns the signal that stopped it, if any did."""
    limit_sec, world = trainer.config.run.step_timeout_sec, trainer.world
    with watchdog.within(None if limit_sec is None else Limit(limit_sec)):
        if not trainer.finished:
            gc.collect()
            gc.freeze()  # a pass over all that lives by now takes as long as a step
            try:
                with trainer.profile:
                    trainer.fit()
            except Stopped as stopped:
                return stopped.by
        world.heartbeat.beat("end")
        _sum_up(trainer)
        world.barrier()
    return None


def _close_monitor(trainer: Trainer, watchdog: Watchdog) -> None:
    """Closes the monitor that there is by then, whose loggers have time of their own for it."""
    limit = start_limit(trainer.config.run.start_timeout_sec)
    if limit is not None:
        limit = replace(limit, sec=limit.sec + DONE_SEC)
    with watchdog.within(limit):
        trainer.monitor.close()


def _ended(trainer: Trainer, stopped: str | None) -> Ended:
    state, course = trainer.state, trainer.course
    return Ended(trainer.folder, stopped, state.step, course.total_steps, tuple(state.history))


def _open(
    config: Config, world: World, share: Share, stop: StopSignal, held: contextlib.ExitStack
) -> Trainer:
    """Collective. Opens the data, and puts every rank at the state from which the run goes on; what
    it opens `held` closes."""
    begins = world.heartbeat.beat
    begins("index")
    train_set, val_set = open_data(config, world)
    world.together(lambda: require_complete(config.data, train_set, val_set))
    world.together(lambda: require_classes(config.data, train_set))
    begins("device")
    device = world.together(lambda: take_share(config, share))
    normalisation = world.together(lambda: normalisation_of(config.data, train_set))
    decode = world.together(
        lambda: choose_decoding(config.data, device, share, (train_set, val_set), normalisation)
    )
    trainer = world.together(lambda: Trainer(config, world, decode, train_set, val_set, stop))
    held.callback(trainer.loaders.close)
    world.require_same(_decided_alike(trainer))
    trainer.join_ranks()
    begins("resume")
    resume(trainer)
    if config.data.exclude is not None:
        listed, position = Path(config.data.exclude), trainer.position
        trainer.state.excluded.listed(listed, train_set, val_set, position, world)
    begins("largest")
    world.together(lambda: _try_largest(trainer))
    begins("files")
    return trainer


def _facts(config: Config) -> dict[str, Any]:
    """Facts that must be the same on every rank before anything else starts."""
    known = {name: version for name, version in versions().items() if version != "unknown"}
    return {"configuration": hashlib.sha256(config.to_yaml().encode()).hexdigest()[:16], **known}


def _decided_alike(trainer: Trainer) -> dict[str, Any]:
    """Decisions that must be the same on every rank."""
    compute = getattr(next(norm_layers(trainer.state.model)), "compute", None)
    return {
        "steps": trainer.course.total_steps,
        "accumulation": trainer.loaders.accumulation,
        "device": trainer.decode.device.type,
        "decoder": trainer.decode.decoder,
        "normalisation": trainer.decode.normalisation.digest,
        "order of sums": trainer.state.summing.sums,
        "norm layer": getattr(compute, "__name__", type(compute).__name__),
    }


def _try_largest(trainer: Trainer) -> None:
    """Runs `decode_largest` on train and val, without what the run excludes, and on a GPU
    `try_step`, unless the first step has the largest size itself."""
    data, excluded = trainer.config.data, trainer.state.excluded
    without = [row[0] for row in excluded.train.rows()]
    passes = trainer.loaders.passes  # their graph stays, for the validations
    decode_largest(trainer.train_set, data, passes, without)
    decode_largest(trainer.val_set, data, passes, excluded.val)
    sizes, decode = trainer.loaders.sizes, trainer.decode
    later = sizes is not None and sizes.of_step(trainer.state.step) < sizes.largest
    if sizes is not None and later and decode.device.type == "cuda":
        images = trainer.loaders.partition.micro_batch_size
        try_step(trainer.state, decode, images, sizes.largest)


def _known_figures(config: Config, decode: DecodeSettings, cores: int) -> Figures:
    """Figures known of a rank with `cores` cores before it trains."""
    on_gpu = decode.device.type == "cuda"
    return Figures(
        decoder=decode.decoder,
        threads=decode.threads,
        cores=cores,
        model_threads=0 if on_gpu else torch.get_num_threads(),
        gpu=on_gpu and gpu_count() > 0,
        compression=config.optim.gradient_compression,
        config=str(RunFolder(config.run.path).config),
    )


def _open_files(trainer: Trainer, observers: Sequence[Observer]) -> None:
    """Opens the files of the run on rank 0, and logs its start."""
    config, state, run = trainer.config, trainer.state, trainer.folder
    header = "".join(f"# {name}: {value}\n" for name, value in versions().items())
    with replacing(run.config) as new:  # readers must not see half of it
        new.write_text(header + config.to_yaml(), encoding="utf-8")
    classes, root = trainer.val_set.classes, Path(config.data.root)
    trainer.monitor = RunMonitor(
        run, config, trainer.position, len(state.history),
        trainer.course.position(trainer.course.total_steps),
        Room(run.path, state.size_bytes(trainer.world.size)),
        Pictures(trainer.decode, trainer.loaders.stream, classes, root), counts_top5(len(classes)),
        observers,
    )  # fmt: skip
    start = _start(trainer)
    trainer.monitor.write("start", start)
    ranks = counted(trainer.world.size, "rank")
    decoding = f"JPEG decoding on the {trainer.decode.decoder.upper()}"
    if trainer.decode.decoder == "none":
        decoding = "images that need no decoding"
    log.info(
        "run %s: %s on %s (%s), AMP %s, %s",
        run.path, start["network"], ranks, start["device"], config.optim.amp, decoding,
    )  # fmt: skip
    log.info(
        "data: %d train and %d val images, %d classes, hash %s",
        start["train_images"], start["val_images"], start["classes"], trainer.train_set.digest[:16],
    )  # fmt: skip
    log.info(
        "batch: %d = %s x %s x %d accumulated; steps %d to %d",
        start["global_batch_size"], ranks, counted(start["micro_batch_size"], "image"),
        start["accumulation"], start["step"], start["total_steps"],
    )  # fmt: skip
    if "init" in start:
        log.info("began with the weights of %s (sha256 %s)", start["init"], start["init_sha256"])
    else:
        warn_of_drawn_weights(config)
    if config.model.freeze:
        frozen = ", ".join(config.model.frozen)
        log.info("frozen: %s; %s", frozen, trained_share(trainer.state.model))
    if config.optim.head_lr is not None:
        share = config.optim.head_lr / config.optim.base_lr
        log.info("the last layer learns at %g times the rate of the others", share)
    if trainer.decode.device.type == "cuda":
        log.info("arithmetic: %s", described(config))
    if trainer.loaders.sizes is not None:
        log.info("training crops: %s", trainer.loaders.sizes.describe())
    if idle := shown_idle(config):
        log.info("without effect: %s", idle)
    described_schedule = trainer.schedule.describe(
        config.data.global_batch_size, trainer.course.total_steps
    )
    log.info("schedule: %s", described_schedule)
    epoch = trainer.progress["epoch"]
    order = trainer.loaders.stream.order.digest(epoch)
    log.info("order of epoch %d: %s (runs of one order have one such digest)", epoch + 1, order)


def _start(trainer: Trainer) -> dict[str, Any]:
    """The facts of this start for readers of the run: its `start` event."""
    loaders = trainer.loaders
    return {
        "step": trainer.state.step,
        "position": trainer.position,
        "total_steps": trainer.course.total_steps,
        "ranks": trainer.world.size,
        "global_batch_size": trainer.config.data.global_batch_size,
        "micro_batch_size": loaders.partition.micro_batch_size,
        "accumulation": loaders.accumulation,
        "sums": trainer.state.summing.sums,
        "train_images": len(trainer.train_set),
        "val_images": len(trainer.val_set),
        "classes": len(trainer.train_set.classes),
        "network": network_name(trainer.config.model),
        **start_facts(trainer.fingerprint),
        "device": str(trainer.decode.device),
        "decoder": trainer.decode.decoder,
        "versions": versions(),
    }


def _reached(state: TrainState) -> str:
    if not state.history:
        return "no validation"
    last, best = state.history[-1], state.best
    raw = f"{_scores(last)} (best top-1 {best['best_top1']:.2%})"
    if last.ema is None:
        return raw
    return f"{raw}, EMA {_scores(last.ema)} (best top-1 {best['best_ema_top1']:.2%})"


def _scores(result: Validation) -> str:
    words = {"top1": "top-1", "top5": "top-5", "balanced_top1": "balanced top-1"}
    found = result.accuracies
    return ", ".join(f"{word} {found[name]:.2%}" for name, word in words.items() if name in found)


def against_expectation(top1: float, expected: float, what: str = "top-1") -> str:
    """The closing line about `run.expect_top1`; `what` says whose top-1 it is."""
    if top1 >= expected:
        return f"as expected: {what} {top1:.2%} reaches the {expected:.2%} of run.expect_top1"
    return (
        f"below expectation: {what} {top1:.2%} is {100 * (expected - top1):.2f} points under the "
        f"{expected:.2%} of run.expect_top1"
    )


def _sum_up(trainer: Trainer) -> None:
    """Writes the run's last line of metrics, and logs the closing lines for people."""
    state = trainer.state
    last = state.history[-1]
    trainer.monitor.write("done", {**trainer.progress, **last.accuracies, **state.best})
    if trainer.world.rank != 0:
        return
    train = [line for line in trainer.folder.lines() if line["event"] == "train"]
    log.info("finished: %s", _reached(state))
    if trainer.config.run.expect_top1 is not None:
        what = "top-1" if last.ema is None else "EMA top-1"
        top1, expected = last.deciding.top1, trainer.config.run.expect_top1
        log.info("%s", against_expectation(top1, expected, what))
    if train:
        names = ("images_per_sec", "data_wait_share", "communication_share")
        # An older line of the same run may have fewer fields.
        median = {name: statistics.median(line.get(name, 0.0) for line in train) for name in names}
        log.info(
            "speed: %.0f img/s (median), data wait %.1f%% of the step",
            median["images_per_sec"], 100 * median["data_wait_share"],
        )  # fmt: skip
        log.info("limited by: %s", judge(seen(median, trainer.world.size, trainer.figures)))
    path, look = trainer.folder.path, ""
    if "tensorboard" in trainer.config.run.loggers:
        look = f"; look at it with: tensorboard --logdir {shell_word(str(path.parent))}"
    log.info("the run lies in %s%s", path, look)
