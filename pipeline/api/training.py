"""`pipeline.train`: a training called from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.api.settings import AnyPath, Settings, config_of_call
from pipeline.config import Config
from pipeline.system.failure import StopSignal
from pipeline.system.launched import launched_size
from pipeline.train.checkpoint_path import checkpoint_exists
from pipeline.train.folder import Checkpoints, RunFolder
from pipeline.train.monitor.observer import Observer

if TYPE_CHECKING:
    from pipeline.train.metrics import Validation
    from pipeline.train.run import Ended

Line = Mapping[str, Any]
"""A line of metrics.jsonl: `event` is start, train, val or done."""


@dataclass(frozen=True)
class TrainResult:
    """How a training ended, the same on every rank.

    history: every validation of the run, those of earlier starts too, oldest first.
    best: the one whose network best.pt is, None before the first.
    """

    folder: Path
    """The run's folder."""
    finished: bool
    stopped: str | None
    """The signal that stopped it, such as SIGINT for an interrupt; None if it is finished. Its
    checkpoint is written: the same call goes on from there."""
    step: int
    total_steps: int
    history: tuple[Validation, ...] = field(repr=False)
    best: Validation | None
    config: Config = field(repr=False)

    @property
    def last(self) -> Validation | None:
        """The newest validation."""
        return self.history[-1] if self.history else None

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best validation; None before the first, and where it could not be
        written."""
        best = self._checkpoints.best
        return best if self.history and best.is_file() else None

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint of the last step."""
        return self._checkpoints.path(self.step)

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of the run's metrics.jsonl, those of one `event` if it is given; read from the
        run's folder each time."""
        lines = RunFolder(self.folder).lines()
        return [line for line in lines if event is None or line["event"] == event]

    @property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(RunFolder(self.folder).checkpoints)


def train(
    config: AnyPath | Settings | Config,
    settings: Settings | None = None,
    *,
    on_metrics: Callable[[Line], object] | None = None,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Trains a network, or resumes its run, as `python -m pipeline.train` does.

    Args:
        config: a YAML file, a dict of settings (others have the defaults of `Config`), or a
            `Config`.
        settings: in place of those of `config`, as {"data.root": "photos"}.
        on_metrics: called on rank 0 with each line of metrics.jsonl once it is written.
        observers: see those lines too, and every step.

    An interrupt (SIGINT, as Jupyter's stop button sends) and the other stop signals save and
    return, `stopped` having the signal's name: in the main thread, as Python hears no signals in
    another. What a callback raises ends the run and is raised here.

    Under horovodrun, torchrun or srun every rank makes the same call. A process alone is not ended
    by the watchdog (run.step_timeout_sec), several ranks are, as with the command.

    Raises:
        ConfigError: a wrong setting. ValueError, of which it is one: wrong data.
        OSError: a file that may not be read or written.
        TrainingError: the job cannot continue; or another call runs in this process.
    """
    resolved = config_of_call(config, settings)
    _require_startable(resolved)
    from pipeline.api.process import alone  # torch, DALI and Horovod: after the check

    heard = [_Heard(one) for one in (_Call(on_metrics), *observers)]
    with alone("pipeline.train"):
        from pipeline.train.run import train as run

        watch = launched_size() > 1
        try:
            with StopSignal() as stop:
                ended = run(resolved, stop, heard, watch)
        except BaseException:
            for one in heard:
                if one.raised is not None:
                    raise one.raised from one.raised.__cause__  # its own, not the ranks'
            raise
    return _result(ended, resolved)


def _require_startable(config: Config) -> None:
    """Raises `ConfigError` for what the command checks before it loads torch."""
    from pipeline.data.batches import split_global_batch

    split_global_batch(config.data.global_batch_size, config.data.local_batch_size, launched_size())
    if config.resume not in ("auto", "none"):
        checkpoint_exists("resume is neither auto nor none, and the checkpoint", config.resume)


def _result(ended: Ended, config: Config) -> TrainResult:
    return TrainResult(
        ended.folder.path, ended.stopped is None, ended.stopped, ended.step, ended.total_steps,
        ended.history, best_of(ended.history), config,
    )  # fmt: skip


def best_of(history: Sequence[Validation]) -> Validation | None:
    """The validation whose network best.pt is: of equals the later."""
    return max(reversed(history), key=lambda one: one.deciding.top1_correct, default=None)


class _Call(Observer):
    """A function that gets the lines."""

    def __init__(self, on_metrics: Callable[[Line], object] | None) -> None:
        self._on_metrics = on_metrics

    def see(self, line: Line) -> None:
        if self._on_metrics is not None:
            self._on_metrics(line)


class _Heard(Observer):
    """Another observer, and what it has raised: ranks that end together give it another form."""

    def __init__(self, other: Observer) -> None:
        self._other = other
        self.raised: BaseException | None = None

    def see(self, line: Line) -> None:
        self._kept(lambda: self._other.see(line))

    def advance(self, position: int) -> None:
        self._kept(lambda: self._other.advance(position))

    def begin_close(self) -> None:
        self._kept(self._other.begin_close)

    def close(self) -> None:
        self._kept(self._other.close)

    def _kept(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self.raised = self.raised or error
            raise
