"""Options of `launch.slurm`: the launcher's own and those of the program it runs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_type_hints

from pipeline.config import Config, ConfigError, names_for, require
from pipeline.config.reading import command_parser, field_docs, load_config, parse
from pipeline.config.setting import PathText
from pipeline.system.launched import Engine

PROGRAMS = {
    "train": "pipeline.train",
    "evaluate": "pipeline.evaluate",
    "prepare": "pipeline.prepare",
}


Runtime = Literal["auto", "pyxis", "apptainer"]
"""What runs tasks in a container."""

DESCRIPTION = (
    "Runs train, evaluate or prepare, with the options of python -m pipeline.train and so on, on "
    "every rank of a Slurm job; the last line of a batch script."
)


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
    container: str | None = None
    """--launch.container: image that all tasks run in: a .sif, a .sqsh, or a name in a registry."""
    container_mounts: str | None = None
    """--launch.container_mounts: what else of the host the image sees, SOURCE:TARGET[:FLAGS],...;
    this folder, the data set's, the run's and those of paths in the options are always seen."""
    container_runtime: Runtime = "auto"
    """--launch.container_runtime: pyxis or apptainer; auto: by the image's name, then by what the
    cluster has."""


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
        return self.module != PROGRAMS["prepare"]

    @property
    def device(self) -> str:
        """run.device as the options set it."""
        device = self._given["run.device"] if self.config is None else self.config.run.device
        return device or "auto"

    @property
    def on_cpu(self) -> bool:
        """Whether the options keep it off the GPUs."""
        return self.device == "cpu"

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
        """What copies this training's data set to `folder` on a node, as `module_and_options`."""
        assert self.config is not None, "only a training stages its data"
        data = self.config.data
        copy = ["--from", data.root, "--to", folder]
        copy += [] if data.cache_dir is None else ["--cache-dir", data.cache_dir]
        return [PROGRAMS["prepare"], "stage", *copy]

    def reading_from(self, folder: str) -> Program:
        """The same program, with the data set in `folder`."""
        return self.with_options(f"--data.root={folder}")

    def with_options(self, *more: str) -> Program:
        """The same program, with more options after its own."""
        return dataclasses.replace(self, options=(*self.options, *more))


def program_of(command: str, options: Sequence[str]) -> Program:
    """The program of a command's name; the settings of a training are checked."""
    module = PROGRAMS[command]
    config = load_config(options, module) if command == "train" else None
    return Program(module, tuple(options), config)


def require_engine(engine: Engine, ranks: int = 2) -> None:
    """Raises `ConfigError` if the engine is not installed; torch.distributed is part of PyTorch,
    and one rank alone needs none."""
    require(
        engine != "horovod" or ranks == 1 or importlib.util.find_spec("horovod") is not None,
        "--launch.engine=horovod, and Horovod is not installed; set --launch.engine=torch, or "
        "build it with python -m launch.horovod_build --install",
    )


def split(argv: Sequence[str]) -> tuple[LaunchOptions, Program]:
    """Parses the launcher's options and the program; refuses wrong ones before anything starts."""
    parser = command_parser("launch.slurm", DESCRIPTION)
    parser.usage = "%(prog)s [--launch.NAME=VALUE ...] train|evaluate|prepare [its options]"
    docs = field_docs(LaunchOptions)
    for field, kind in get_type_hints(LaunchOptions, include_extras=True).items():
        parser.add_argument(
            f"--launch.{field}", dest=field, type=kind, default=argparse.SUPPRESS,
            help=docs[field].partition(": ")[2],
        )  # fmt: skip
    own = [argument for argument in argv if argument.startswith("--launch.")]
    command, *options = [argument for argument in argv if argument not in own] or ["nothing"]
    given = parse(parser, [*own, *(["--help"] if command in ("-h", "--help") else [])])
    chosen = {name: given[name] for name in get_type_hints(LaunchOptions) if name in given}
    launch = LaunchOptions(**chosen)
    require(command in PROGRAMS, f"launch.slurm runs {', '.join(PROGRAMS)}, not {command}")
    program = program_of(command, options)
    given_too = launch.container_mounts is not None or launch.container_runtime != "auto"
    require(
        launch.container is not None or not given_too,
        "--launch.container_mounts and --launch.container_runtime go with --launch.container=IMAGE "
        "only; give it too",
    )
    require(
        launch.stage is None or program.config is not None,
        f"--launch.stage={launch.stage} goes with train only; give {command} a --data.root",
    )
    return launch, program
