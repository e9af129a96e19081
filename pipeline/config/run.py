"""Settings of where and how often a run writes, and the steps of `--profile`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config.setting import ConfigError, PathText, check_limits, require, setting, shown

MOST_STEPS = 100
"""The limit on steps in a trace: it takes about a megabyte a step, and a browser has to open it."""
WARM_STEPS = 10
"""Steps of a start before those that `--profile 5` traces: the first are slower than the rest."""

Logger = Literal["tensorboard", "csv", "wandb", "mlflow"]
"""Where the numbers of a run go besides its metrics.jsonl."""

_STEPS_FORM = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?", re.ASCII)


@dataclass(frozen=True)
class ProfiledSteps:
    """Steps to trace, counted from 0 as in the log's "stopped before step 7": `count` of them from
    `first` on, or soon after the start if that is None."""

    first: int | None
    count: int

    def of_start(self, begin: int, total_steps: int) -> range:
        """The steps for a start that trains [begin, total_steps); empty if they are already done.

        Raises `ConfigError` for steps that the run does not have.
        """
        if self.first is None:
            require(
                self.count <= total_steps,
                f"--profile {self.count} asks for more steps than the {total_steps} of the run; "
                f"ask for at most {total_steps}",
            )
            first = max(begin, min(begin + WARM_STEPS, total_steps - self.count))
            return range(first, min(first + self.count, total_steps))
        end = self.first + self.count
        require(
            end <= total_steps,
            f"--profile {self.first}-{end - 1} reaches beyond the run, whose last step is "
            f"{total_steps - 1}; choose steps up to that one",
        )
        return range(max(begin, self.first), max(begin, end))


def profiled_steps(text: str) -> ProfiledSteps:
    """The steps that `text`, such as 5 or 20-25, means. Raises `ConfigError`."""
    found = _STEPS_FORM.fullmatch(text)
    steps = None
    if found is not None and found[2] is None:
        steps = ProfiledSteps(None, int(found[1]))
    elif found is not None:
        steps = ProfiledSteps(int(found[1]), int(found[2]) - int(found[1]) + 1)
    require(
        steps is not None and 1 <= steps.count <= MOST_STEPS,
        f"--profile {text} must be a number of steps, such as 5, or the first and the last of "
        f"them, such as 20-25 counted from 0: at least 1 and at most {MOST_STEPS}",
    )
    assert steps is not None
    return steps


_NAME_BYTES = 200
"""The longest name of a run: file systems have 255 for a name, and files of a run carry it."""


def require_plain_name(name: str) -> None:
    """Raises `ConfigError` unless `name` can name a run that starts: every command finds its folder
    and no line about it looks like two. (Runs of other names, which were allowed, can be read.)"""
    reason = None
    if name.startswith((".", "-")):
        reason = f"begins with {name[0]}"
    elif not name.isprintable() or name != name.strip():
        reason = "holds a character that is not printed, or a blank at an end"
    elif len(name.encode()) > _NAME_BYTES:
        reason = f"is {len(name.encode())} bytes long, of at most {_NAME_BYTES}"
    if reason is not None:
        shown = name if len(name) <= _NAME_BYTES else f"{name[:20]}..."
        raise ConfigError(f"run.name={shown!r} {reason}; set run.name to a plain folder name")


@dataclass(frozen=True)
class RunConfig:
    """Where a run is kept, what it writes when, and what it runs on."""

    name: str = setting("resnet50", "place")
    """Name of the run; it lies in <dir>/<name>/."""
    dir: PathText = setting("runs", "place")
    """Folder of all runs."""
    seed: int = setting(0, "kept", asked=2)
    """Seed of the initial weights, the data order and every augmentation."""
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "execution", ("evaluate", "predict", "benchmark", "doctor")
    )
    """What the model runs on; auto: a GPU per rank where there is one."""
    threads: int | None = setting(
        None, "execution", ("evaluate", "predict", "benchmark"), limits="[1, inf)"
    )
    """PyTorch's CPU threads per rank; null: this rank's share of the cores."""
    sums: Literal["auto", "fast", "fixed"] = setting("auto", "execution", ("benchmark",))
    """fixed: gradients and BN's statistics are summed in the order of the images, so that on CPUs a
    run has the same bits on any number of ranks of the same micro-batch and threads; fast: in
    whatever order is quickest; auto: fixed on CPUs unless optim.gradient_compression rounds what
    travels."""
    autotune: bool = setting(True, "execution", ("benchmark",))
    """On a GPU, let cuDNN try its algorithms for each shape and keep the fastest; equal bits of
    two runs need false, and deterministic algorithms besides."""
    log_every_steps: int = setting(50, "execution", limits="[1, inf)")
    """Steps between two lines of training metrics."""
    loggers: tuple[Logger, ...] = setting(("tensorboard",), "execution")
    """Where the lines of metrics go besides metrics.jsonl: tensorboard; csv, tables in the run's
    folder; wandb and mlflow, which are set up by their own environment variables."""
    checkpoint_every_steps: int | None = setting(None, "execution", limits="[1, inf)")
    """Steps between checkpoints inside an epoch; null: none by steps."""
    checkpoint_every_sec: float | None = setting(900.0, "execution", limits="(0, inf]")
    """Seconds between checkpoints inside an epoch; null: none by time."""
    keep_checkpoints: int = setting(3, "execution", limits="[1, inf)")
    """How many of the newest checkpoints stay, besides the best."""
    step_timeout_sec: float | None = setting(600.0, "execution", limits="[1, 1000000]")
    """Seconds without progress on a rank after which the job ends and names who holds it up; null:
    it waits for ever."""
    start_timeout_sec: float | None = setting(
        1800.0, "execution", ("evaluate",), limits="[1, 1000000]"
    )
    """The same before the first step, while the data are indexed and a checkpoint is read, and for
    all of an evaluation; each folder and container that is indexed is progress."""

    expect_top1: float | None = setting(None, "execution", limits="[0, 1]")
    """Top-1 in [0, 1] that earlier runs of this configuration reached, to which the end of a run
    is compared (that of the EMA where there is one); null: none is known."""

    def __post_init__(self) -> None:
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"run.name={self.name!r} must be a plain folder name; the folder that it lies in is "
            "run.dir",
        )
        require(
            len(set(self.loggers)) == len(self.loggers),
            f"run.loggers={shown(self.loggers)} names one twice; name each once",
        )
        require(0 <= self.seed < 2**63, f"run.seed={self.seed} must lie in [0, 2**63)")
        check_limits(self, "run.")

    @property
    def path(self) -> Path:
        """The run's own folder."""
        return Path(self.dir) / self.name
