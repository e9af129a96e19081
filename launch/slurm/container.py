"""The container that holds a job's tasks: by Pyxis, Slurm's plug-in for Enroot, or by Apptainer.

`launch.slurm` itself runs on the host, as part of the batch script, and needs Slurm's programs
there; what it starts on the nodes (the doctor, the copy of the data, the meeting point, the ranks)
runs in the image. Options of Pyxis: its args.c, 0.20; of Apptainer: its manual, 1.3.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.slurm.options import LaunchOptions, Program, Runtime
from pipeline.config import ConfigError, require
from pipeline.config.setting import home
from pipeline.system.gpus import CONTAINER

_APPTAINER = ("apptainer", "singularity")
# An image's own value of a variable wins under Pyxis unless the variable is named.
_OURS = ("TRAINYARD_", "HOROVOD_", "NCCL_", "GLOO_", "MASTER_", "TORCHELASTIC_", "PYTHONNOUSER")


@dataclass(frozen=True)
class Container:
    """An image and how tasks run in it."""

    image: str
    runtime: Literal["pyxis", "apptainer"]
    mounts: tuple[str, ...]
    """What the image sees of the host, as SOURCE:TARGET[:FLAGS]."""
    folder: str
    """The working directory, the same inside."""
    gpus: bool
    """Whether the tasks use the node's GPUs."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the tasks besides the job's: packages of the user's home, which Apptainer
        mounts, are made for another Python."""
        return {CONTAINER: self.runtime, "PYTHONNOUSERSITE": "1"}

    def srun_options(self, env: Mapping[str, str]) -> list[str]:
        """srun's options by which Pyxis runs tasks of the environment `env` in the image."""
        if self.runtime != "pyxis":
            return []
        names = sorted(name for name in {**env, **self.environment} if name.startswith(_OURS))
        return [
            f"--container-image={self.image}",
            f"--container-mounts={','.join(self.mounts)}",
            f"--container-workdir={self.folder}",
            f"--container-env={','.join(names)}",
        ]

    def prefix(self) -> list[str]:
        """What stands before a command that Apptainer runs in the image."""
        if self.runtime != "apptainer":
            return []
        gpus = ["--nv"] if self.gpus else []
        binds = ["--bind", ",".join(self.mounts)]
        return [
            _apptainer() or "apptainer",
            "exec",
            *gpus,
            *binds,
            "--pwd",
            self.folder,
            self.image,
        ]


def container_of(options: LaunchOptions, program: Program, gpus: bool) -> Container | None:
    """The container that the options ask for; None without one.

    `gpus`: whether the job has GPUs for the program. Raises `ConfigError` where the runtime is not
    there, or a path cannot be mounted.
    """
    image = options.container
    if image is None:
        return None
    runtime = choose_runtime(image, options.container_runtime)
    if _is_file(image):
        image = home(image)
        require(
            os.path.exists(image),
            f"--launch.container={image} does not exist; give an image that every node sees",
        )
    folder = os.getcwd()
    wanted = [folder, *_paths_of(program, options.stage)]
    own = tuple(f"{path}:{path}" for path in mounted(wanted))
    return Container(image, runtime, (*own, *_given(options.container_mounts)), folder, gpus)


def choose_runtime(image: str, asked: Runtime) -> Literal["pyxis", "apptainer"]:
    """The runtime that this cluster has for the image, or the one asked for.

    Raises `ConfigError` if it is not there.
    """
    file = image.removesuffix("/")
    kind = {".sif": "apptainer", ".sqsh": "pyxis"}.get(Path(file).suffix)
    order = [asked] if asked != "auto" else [kind] if kind else ["pyxis", "apptainer"]
    for one in order:
        if one == "pyxis" and _has_pyxis():
            return "pyxis"
        if one == "apptainer" and _apptainer() is not None:
            return "apptainer"
    needs = {
        "pyxis": "srun has no --container-image (the plug-in Pyxis is not installed)",
        "apptainer": "neither apptainer nor singularity is on the PATH",
    }
    raise ConfigError(
        f"--launch.container={image} cannot be run here: "
        f"{' and '.join(needs[one] for one in order if one is not None)}; ask for it, or name the "
        "other runtime with --launch.container_runtime (a .sif needs apptainer, a .sqsh pyxis)"
    )


def _has_pyxis() -> bool:
    try:
        said = subprocess.run(["srun", "--help"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return "--container-image" in said.stdout


def _apptainer() -> str | None:
    return next(filter(None, map(shutil.which, _APPTAINER)), None)


def _is_file(image: str) -> bool:
    """Whether an image is named by a path, and not by its place in a registry."""
    return image.startswith(("/", "./", "../", "~")) or image.endswith((".sif", ".sqsh"))


def _paths_of(program: Program, stage: str | None) -> list[str]:
    """The files and folders that the options of a program name, its data set's and its run's."""
    words = [word.partition("=")[2] or word for word in program.options]
    named = [word for word in words if word.startswith(("/", "~")) or os.path.exists(word)]
    if stage is not None:
        named.append(stage)
    if program.config is not None:
        data, run = program.config.data, program.config.run.path
        named += [data.root, str(run), *([] if data.cache_dir is None else [data.cache_dir])]
    return [home(path) for path in named]


def mounted(paths: Iterable[str]) -> list[str]:
    """The folders of the host that must be seen for `paths` to be what they are here.

    Where a path does not exist yet its first parent that does; behind a link its target as well.
    None lies in another, and / is never one.
    """
    found: set[Path] = set()
    for path in paths:
        place = Path(os.path.abspath(path))
        while not place.exists():
            place = place.parent
        found |= {place, place.resolve()}
    found.discard(Path("/"))
    for path in sorted(map(str, found)):
        require(
            not set(path) & set(":,"),
            f"{path} cannot be mounted into a container, as its name has a colon or a comma; "
            "rename it, or reach it by a link of another name",
        )
    return sorted(str(p) for p in found if not any(q in p.parents for q in found))


def _given(mounts: str | None) -> list[str]:
    """The mounts of --launch.container_mounts, each with a target."""
    found = []
    for mount in filter(None, (mounts or "").split(",")):
        source, *rest = mount.split(":")
        target = rest[0] if rest else source
        require(
            len(rest) <= 2 and source.startswith("/") and target.startswith("/"),
            f"--launch.container_mounts: {mount} must be SOURCE:TARGET or SOURCE:TARGET:FLAGS with "
            "absolute paths, commas between several",
        )
        found.append(":".join([source, target, *rest[1:]]))
    return found


def srun(
    options: Sequence[str],
    command: Sequence[str],
    container: Container | None = None,
    env: Mapping[str, str] = os.environ,
) -> list[str]:
    """The command line that runs `command`, a module and its options, by Python as tasks of this
    job, in `container` if there is one.

    The tasks get the whole environment `env`, even in a job submitted with --export=NONE.
    """
    base = ["srun", "--mpi=none", "--export=ALL", *options]
    if container is None:
        return [*base, sys.executable, "-m", *command]
    return [*base, *container.srun_options(env), *container.prefix(), "python", "-m", *command]
