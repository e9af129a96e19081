"""The training loops: one step, an epoch, a whole run."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Any, NoReturn

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.batches import Course
from pipeline.data.dali import Batch, DecodeSettings
from pipeline.data.images import ImageSet
from pipeline.ranks.gradients import GradientAverager
from pipeline.ranks.world import World
from pipeline.system.failure import Stopped, StopSignal
from pipeline.system.machine import versions
from pipeline.train.ema import require_updates
from pipeline.train.feed import Feed
from pipeline.train.folder import RunFolder
from pipeline.train.loaders import Loaders
from pipeline.train.loss import Objective
from pipeline.train.metrics import counts_top5, is_best, of_all_ranks, of_this_rank, run_is_taken
from pipeline.train.monitor.monitor import Monitor
from pipeline.train.optimizer import lr_in_force, named_norms, norms, set_lr
from pipeline.train.phases import Phases
from pipeline.train.precision import TrainingDiverged, require_finite_loss
from pipeline.train.profile import Profile
from pipeline.train.saving import CheckpointFolder, SaveClock
from pipeline.train.schedule import make_schedule, run_length
from pipeline.train.state import TrainState, fingerprint, require_finite
from pipeline.train.validation import ErrorAnalysis, require_learning, validate_state
from pipeline.train.verdict import Figures, judge, seen
from pipeline.train.writer import CheckpointWriter

log = logging.getLogger("trainyard")


class Trainer:
    """One run's loops, and the loaders, ranks and files that they use besides its `state`.

    Built alike on all ranks, without a collective, so that any rank may fail; `join_ranks` follows.
    Raises `ValueError` for a setting that does not fit the data or the number of ranks. Rank 0 sets
    a `monitor` that writes.
    """

    def __init__(
        self, config: Config, world: World, decode: DecodeSettings, train_set: ImageSet,
        val_set: ImageSet, stop: StopSignal,
    ) -> None:  # fmt: skip
        self.config, self.world, self.decode = config, world, decode
        self.train_set, self.val_set, self.stop = train_set, val_set, stop
        batch, images = config.data.global_batch_size, len(train_set)
        self.course = Course(images, batch, run_length(config.schedule, images, batch))
        require_updates(config.optim, self.course.total_steps)
        self.schedule = make_schedule(config, images)
        self.loaders = Loaders(config, world, decode, train_set, val_set, self.course.total_steps)
        self.objective = Objective(config, train_set, self.loaders.partition, decode.device)
        self.state = TrainState(
            config, len(train_set.classes), self.schedule, self.loaders.accumulation,
            self.loaders.excluded, decode.device,
        )  # fmt: skip
        self.averager: GradientAverager  # from `join_ranks`
        self.phases = Phases(world.heartbeat, decode.device)
        self.folder = RunFolder(config.run.path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints, config.run.keep_checkpoints)
        self.writer = CheckpointWriter(self.checkpoints, decode.device, world.heartbeat)
        self.monitor = Monitor()
        self.profile = Profile()  # of no step, unless --profile asks for some
        self.figures = Figures()  # the figures of the verdict that are known before training begins
        hashes = {"train": train_set.digest, "val": val_set.digest}
        self.fingerprint = fingerprint(config, hashes, decode.normalisation)
        self._train_top1 = 0.0  # of the last line of metrics
        self.saves = SaveClock(config.run.checkpoint_every_sec if world.rank == 0 else None)

    def join_ranks(self) -> None:
        """Collective. From now on gradients are those of all ranks."""
        self.averager = self.world.average_gradients(self.state.model, self.state.summing)

    @property
    def position(self) -> int:
        """Images consumed by the whole job before the next step."""
        return self.course.position(self.state.step)

    @property
    def progress(self) -> dict[str, int]:
        """Where the run stands, as a line of metrics has it: the epoch, from 0, is that of the step
        before the next one."""
        step = self.state.step
        return {"step": step, "position": self.position, "epoch": self.course.epoch(step)}

    @property
    def validation_due(self) -> bool:
        """Whether the run is at the end of an epoch that has not been validated."""
        return self.course.validation_due(self.state.step, self.state.validated)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train or to validate."""
        return self.state.step >= self.course.total_steps and not self.validation_due

    def lr(self, step: int) -> float:
        """The learning rate of `step`, given the history of training."""
        return self.schedule.lr(self.course.position(step), self.state.so_far)

    def fit(self) -> None:
        """Trains from the present state to the end of the schedule.

        At the end of every epoch: save, validate, save the result. A validation that a stop left
        undone comes first. Raises `Stopped` after a signal, its checkpoint written.
        """
        with closing(self.loaders), closing(self.feed()) as feed, closing(self.writer):
            self.start_clock()
            if self.validation_due:
                self.validate_and_save()
            while self.state.step < self.course.total_steps:
                self.train_epoch(feed, self.course.next_validation(self.state.step))
                self.save()
                self.validate_and_save()

    def feed(self) -> Feed:
        """This rank's batches from the next step on, past bad images if so configured."""
        loader = self.loaders.train(self.state.step)
        return Feed(loader, self.world, self.stop, self.phases, self.loaders.recover)

    def start_clock(self) -> None:
        """Starts measuring speed and times: what came before was no training."""
        self.state.window.start_clock()
        self.phases.restart()
        self.world.heartbeat.take_longest_sec()  # forgets it

    def train_epoch(self, feed: Feed, until: int) -> None:
        """Steps up to step `until`; records metrics and saves on the way."""
        state, every = self.state, self.config.run.checkpoint_every_steps
        first = state.step
        state.model.train()
        while state.step < until:
            self.profile.before(state.step)
            batch, decision = feed.next(state.step, self.saves.due)
            if decision.stop or (decision.save and self.saves.last_step != state.step):
                self.save(last=bool(decision.stop))
            if decision.stop:
                self._leave(decision.stop)
            if state.step == first:
                self.monitor.images(self.objective.mixing.shown(batch), self.position)
            measured = self.train_step(batch, feed)
            state.step += 1
            state.warmup.close(state.step, self.world)
            self.monitor.advance(self.position)
            if measured is not None:
                self._record(measured)
            if every and state.step % every == 0 and state.step < until:
                self.save()
            self.profile.after(state.step - 1)

    def train_step(self, batch: Batch, feed: Feed) -> Tensor | None:
        """One optimizer step over this rank's micro-batches, of which `batch` is the first.

        Returns gradients' and weights' `optimizer.norms` if this step's line of metrics is due.
        """
        state, accumulation = self.state, self.loaders.accumulation
        set_lr(state.optimizer, self.lr(state.step))
        for micro in range(accumulation):
            if micro > 0:
                batch, _ = feed.next(state.step, micro=micro)
            with self.phases("forward"), state.precision.autocast():
                images, targets = self.objective.mixed(batch)
                logits = state.forward(images)
                loss = self.objective.loss(logits, targets)
            with self.phases("backward"), self.averager.micro_batch(micro):
                state.precision.backward(loss / self.averager.divisor)
            counts = state.window.add(state.step, loss.detach(), logits.detach(), targets.larger)
            state.warmup.add(counts)
            state.record_statistics(self.averager.statistics[micro])
            self._fetch_ahead(feed, micro)
        with self.phases("communication"):
            self.averager.synchronize()
        state.apply_statistics(self.averager.all_statistics)
        with self.phases("optimizer"):
            return self._update()

    def _fetch_ahead(self, feed: Feed, micro: int) -> None:
        """Fetches the batch after micro-batch `micro` while that is being computed."""
        step = self.state.step + (micro + 1 == self.loaders.accumulation)
        if step < self.course.total_steps:
            feed.fetch(step, self.saves.due)

    def _update(self) -> Tensor | None:
        """Changes the weights by the averaged gradients. Returns as `train_step` does."""
        self.writer.snapshot.before_update()
        state, found = self.state, None
        done = state.step + 1
        if done % self.config.run.log_every_steps == 0 or done == self.course.total_steps:
            state.precision.unscale_(state.optimizer)
            found = norms(state.model)
        try:
            state.precision.step(state.optimizer)
        except TrainingDiverged as error:  # on all ranks at once: the average is the same
            self.world.raise_together(error)
        if state.ema is not None:
            state.ema.update(done)
        self.averager.clear()
        return found

    def save(self, best: bool = False, last: bool = False) -> None:
        """Collective. Saves a checkpoint before the next step; does not change the training.

        Never one after a non-finite loss. Where `writer` fails to write it the run continues
        without, unless it is the `last` one of this start."""
        with self.phases("checkpoint", self.state.step), self.state.window.paused():
            self._require_finite_loss()
            content = self.content()

            def write() -> None:
                self.writer.wait()
                self.folder.require_of(self.world.start)
                require_finite(content)
                self.writer.save(self.state.step, content, best, last)

            self.world.on_rank0(write)
            self.saves.done(self.state.step)

    def content(self) -> dict[str, Any]:
        """Collective. Returns the content of a checkpoint before the next step, until that."""
        return {
            "fingerprint": self.fingerprint,
            "position": self.position,
            "normalisation": self.decode.normalisation.state(),
            "classes": self.train_set.classes,
            "config": self.config.to_yaml(),
            "threads": {"torch": torch.get_num_threads(), "dali": self.decode.threads},
            "world_size": self.world.size,
            "versions": versions(),
            **self.state.take(self.world),
        }

    def validate_and_save(self) -> None:
        """Collective. Validates the present state, then saves again with the result."""
        state = self.state
        with self.phases("validation", state.step), state.window.paused():
            classes = len(self.val_set.classes)
            analysis = ErrorAnalysis(classes, self.world.rank == 0, self.decode.device)
            counted, spread = validate_state(
                state, self.loaders, self.val_set, self.world, analysis
            )
            result = counted.at(**self.progress)
            require_learning(result, self._train_top1, classes, self.world)
            state.history.append(result)
            line = {
                **result.metrics(),
                **state.best,
                "excluded": len(state.excluded.val),
                "bn_spread": spread,
                **analysis.class_top1(),
                **self.writer.outcome(),
            }
            if not self._run_is_taken():  # else `save` ends all ranks
                self.monitor.val(line, analysis)
        self.save(best=is_best(state.history), last=self.finished)

    def _record(self, measured: Tensor) -> None:
        """Collective. Writes the line of metrics that ends with the last step, with its norms."""
        state = self.state
        with self.phases("record"):
            self._require_finite_loss()
            mine = of_this_rank(
                state.window, self.phases, self.world.heartbeat, self.decode.decoder == "gpu",
                self._run_is_taken(),
            )  # fmt: skip
            everyone = self.world.gather(mine)
            if run_is_taken(everyone):
                self.world.on_rank0(lambda: self.folder.require_of(self.world.start))
            totals = of_all_ranks(everyone, counts_top5(len(self.val_set.classes)))
            self._train_top1 = totals["top1"] or 0.0
            line = {
                **self.progress,
                **totals,
                "lr": lr_in_force(state.optimizer),
                **named_norms(state.model, measured),
                "loss_scale": state.precision.scale,
                "skipped_steps": state.precision.skipped_steps,
                **self.loaders.figures(state.step - 1),
            }
            limit = judge(seen(line, self.world.size, self.figures))
            self.monitor.train(line, limit.kind)
        state.window.restart()
        self.phases.restart()

    def _run_is_taken(self) -> bool:
        """On rank 0, which writes the run's files: whether another start has taken the run."""
        return self.world.rank == 0 and not self.folder.is_of(self.world.start)

    def _leave(self, by: str) -> NoReturn:
        """Collective. Stops all ranks together, recording why and where; raises `Stopped`."""
        step = self.state.step
        log.info("stopped before step %d by %s; start again to resume", step, by)
        self.world.on_rank0(lambda: self.folder.record_stop(by, step))
        self.world.barrier()
        raise Stopped(by)

    def _require_finite_loss(self) -> None:
        """Collective. Ends the run on all ranks together when any of them saw a non-finite loss."""
        found = self.state.window.fold()
        require_finite_loss(found, self.course.total_steps, self.lr, self.world)
