"""Options of `launch.slurm`: the launcher's own and those of the program it runs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from pipeline.config import Config, ConfigError, names_for, require
from pipeline.config.reading import command_parser, load_config, parse
from pipeline.config.setting import PathText
from pipeline.system.launched import Engine

_COMMANDS = {
    "train": "pipeline.train",
    "evaluate": "pipeline.evaluate",
    "prepare": "pipeline.prepare",
}


@dataclass(frozen=True)
class LaunchOptions:
    """The options of the launcher itself, accepted anywhere among the program's."""

    engine: Engine = "horovod"
    """--launch.engine: what connects the ranks: Horovod, or torch.distributed."""
    interface: str | None = None
    """--launch.interface: network interface of every node; default: the one with its address."""
    doctor: bool = True
    """--launch.doctor: check every node before the ranks start."""
    stage: PathText | None = None
    """--launch.stage: folder on each node's own disk that gets a copy of the data first."""
    requeue: bool = True
    """--launch.requeue: after SIGUSR1, put the job back into the queue."""


@dataclass(frozen=True)
class Program:
    """The program that every rank runs."""

    module: str
    options: tuple[str, ...]
    config: Config | None = None
    """Of a training, checked before anything is started."""

    @property
    def on_every_rank(self) -> bool:
        """Whether the job has several ranks; data are prepared by one process."""
        return self.module != _COMMANDS["prepare"]

    @property
    def on_cpu(self) -> bool:
        """Whether the options keep it off the GPUs."""
        device = self._given["run.device"] if self.config is None else self.config.run.device
        return device == "cpu"

    @property
    def doctor_settings(self) -> list[str]:
        """The options for the doctor: where data and run lie and what the ranks need."""
        if self.config is not None:
            return list(self.options)
        return [f"--{name}={value}" for name, value in self._given.items() if value is not None]

    @property
    def _given(self) -> dict[str, str | None]:
        """The settings that the doctor reads, None where the options do not set them.

        Raises `ConfigError` for one without its value.
        """
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        for name in names_for("doctor"):
            parser.add_argument(f"--{name}")
        try:
            return vars(parser.parse_known_args(self.options)[0])
        except argparse.ArgumentError as error:
            raise ConfigError(f"{error.argument_name} needs a value") from error

    @property
    def run_dir(self) -> Path | None:
        """The folder of the run, if it has one."""
        return None if self.config is None else self.config.run.path

    @property
    def module_and_options(self) -> list[str]:
        """The module and its options, as `python -m` takes them."""
        return [self.module, *self.options]

    def staging(self, folder: str) -> list[str]:
        """The command that copies this training's data set to `folder` on a node."""
        assert self.config is not None, "only a training stages its data"
        data = self.config.data
        copy = ["--from", data.root, "--to", folder]
        copy += [] if data.cache_dir is None else ["--cache-dir", data.cache_dir]
        return [sys.executable, "-m", _COMMANDS["prepare"], "stage", *copy]

    def reading_from(self, folder: str) -> Program:
        """The same program, with the data set in `folder`."""
        return dataclasses.replace(self, options=(*self.options, f"--data.root={folder}"))


def split(argv: Sequence[str]) -> tuple[LaunchOptions, Program]:
    """Parses the launcher's options and the program; refuses wrong ones before anything starts."""
    parser = command_parser("launch.slurm", "")
    for field, kind in get_type_hints(LaunchOptions, include_extras=True).items():
        parser.add_argument(f"--launch.{field}", dest=field, type=kind, default=argparse.SUPPRESS)
    own = [argument for argument in argv if argument.startswith("--launch.")]
    given = parse(parser, own)
    chosen = {name: given[name] for name in get_type_hints(LaunchOptions) if name in given}
    launch = LaunchOptions(**chosen)
    command, *options = [argument for argument in argv if argument not in own] or ["nothing"]
    require(command in _COMMANDS, f"launch.slurm runs {', '.join(_COMMANDS)}, not {command}")
    module = _COMMANDS[command]
    config = load_config(options, module) if command == "train" else None
    require(
        launch.stage is None or config is not None,
        f"--launch.stage={launch.stage} goes with train only; give {command} a --data.root",
    )
    return launch, Program(module, tuple(options), config)
