"""What a batch script passes to launch/slurm/__main__.py: its own options and the program's."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.config import Config, ConfigError, names_for, require
from pipeline.config.reading import load_config

_PREFIX = "--launch."
_COMMANDS = {
    "train": "pipeline.train",
    "evaluate": "pipeline.evaluate",
    "prepare": "pipeline.prepare",
}


@dataclass(frozen=True)
class LaunchOptions:
    """The options of the launcher itself, given anywhere among the program's."""

    interface: str | None = None
    """--launch.interface: network interface of every node; default: the one with its address."""
    doctor: bool = True
    """--launch.doctor: check every node before the ranks start."""
    stage: str | None = None
    """--launch.stage: folder on each node's own disk that gets a copy of the data first."""
    requeue: bool = True
    """--launch.requeue: after SIGUSR1, put the job back into the queue."""


@dataclass(frozen=True)
class Program:
    """What every rank runs."""

    module: str
    options: tuple[str, ...]
    config: Config | None = field(default=None)
    """Of a training, checked before anything is started."""

    @property
    def on_every_rank(self) -> bool:
        """Whether it is a job of several ranks; data are prepared by one process."""
        return self.module != _COMMANDS["prepare"]

    @property
    def on_cpu(self) -> bool:
        """Whether it was told to leave GPUs alone."""
        if self.config is not None:
            return self.config.run.device == "cpu"
        return self._given("run.device") == "cpu"

    @property
    def doctor_settings(self) -> list[str]:
        """The options that say where data and run lie and what the ranks need, for the doctor."""
        if self.config is not None:
            return list(self.options)
        found = {name: self._given(name) for name in names_for("doctor")}
        return [f"--{name}={value}" for name, value in found.items() if value is not None]

    def _given(self, setting: str) -> str | None:
        """The value of a setting in the options, as --NAME=VALUE or --NAME VALUE."""
        found = None
        for option, following in zip(self.options, (*self.options[1:], ""), strict=True):
            name, equals, value = option.partition("=")
            if name == f"--{setting}":
                found = value if equals else following
        return found

    @property
    def run_dir(self) -> Path | None:
        """The folder of the run, if it has one."""
        return None if self.config is None else self.config.run.path

    @property
    def module_and_options(self) -> list[str]:
        """As `python -m` takes them."""
        return [self.module, *self.options]

    @property
    def command(self) -> list[str]:
        """As a process is started."""
        return [sys.executable, "-m", *self.module_and_options]

    def staging(self, folder: str) -> list[str]:
        """What copies this training's data set to `folder` of a node."""
        assert self.config is not None, "only a training stages its data"
        data = self.config.data
        copy = ["--from", data.root, "--to", folder]
        copy += [] if data.cache_dir is None else ["--cache-dir", data.cache_dir]
        return [sys.executable, "-m", _COMMANDS["prepare"], "stage", *copy]

    def reading_from(self, folder: str) -> Program:
        """The same, with the data set in `folder`."""
        return dataclasses.replace(self, options=(*self.options, f"--data.root={folder}"))


def split(argv: Sequence[str]) -> tuple[LaunchOptions, Program]:
    """The launcher's options and the program, wrong ones refused before anything starts."""
    own: dict[str, Any] = {}
    for argument in argv:
        if argument.startswith(_PREFIX):
            name, _, value = argument.removeprefix(_PREFIX).partition("=")
            own[name] = _value(name, value)
    rest = [argument for argument in argv if not argument.startswith(_PREFIX)]
    require(
        bool(rest) and rest[0] in _COMMANDS,
        f"launch.slurm runs {', '.join(_COMMANDS)}, not {rest[0] if rest else 'nothing'}",
    )
    module, options = _COMMANDS[rest[0]], tuple(rest[1:])
    config = load_config(options, module) if rest[0] == "train" else None
    launch = LaunchOptions(**own)
    require(
        launch.stage is None or config is not None,
        f"--launch.stage={launch.stage} goes with train only; give {rest[0]} a --data.root",
    )
    return launch, Program(module, options, config)


def _value(name: str, value: str) -> object:
    known = {f.name: f for f in fields(LaunchOptions)}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {_PREFIX}{nearest[0]}?" if nearest else f"there are: {', '.join(known)}"
        )
        raise ConfigError(f"there is no option {_PREFIX}{name}; {hint}")
    if known[name].type == "bool":
        require(value in ("true", "false"), f"{_PREFIX}{name}={value} must be true or false")
        return value == "true"
    example = {"interface": "ib0", "stage": "/scratch/imagenet"}[name]
    require(value != "", f"{_PREFIX}{name} needs a value, as in {_PREFIX}{name}={example}")
    return value
