"""The container that holds a job's tasks: by Pyxis, Slurm's plug-in for Enroot, or by Apptainer.

`launch.slurm` itself runs on the host, as part of the batch script, and needs Slurm's programs
there; what it starts on the nodes (the doctor, the copy of the data, the meeting point, the ranks)
runs in the image. Options of Pyxis: its args.c, 0.20; of Apptainer: its manual, 1.3.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from launch.slurm.options import LaunchOptions, Program, Runtime
from pipeline.config import Config, ConfigError, names_for, require, setting_types
from pipeline.config.setting import PathText, home
from pipeline.config.yaml_file import files_of, settings_in, shipped
from pipeline.system.gpus import CONTAINER
from pipeline.train.folder import run_of

_APPTAINER = ("apptainer", "singularity")
# Enroot takes mounts as lines of an fstab, which a shell prints.
_ENROOTS = '"$`\\'
# What an image has itself, and needs: a folder of the host in its place would hide it.
_OF_IMAGES = {
    Path(name)
    for name in (
        "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/run", "/sbin", "/sys",
        "/usr", "/usr/local", "/var",
    )
}  # fmt: skip
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
        image = os.path.abspath(home(image))  # to Pyxis x.sqsh is a name in a registry
        require(
            os.path.exists(image),
            f"--launch.container={image} does not exist; give an image that every node sees",
        )
    elif runtime == "apptainer" and "://" not in image:  # to it a name is that of a file
        image = f"docker://{image.replace('#', '/', 1)}"
    folder = os.getcwd()
    places = mounted([folder, *_paths_of(program, options.stage)])
    mounts = (*(f"{place}:{place}" for place in places), *_given(options.container_mounts))
    for mount in mounts if runtime == "pyxis" else ():
        odd = next((letter for letter in mount if letter.isspace() or letter in _ENROOTS), None)
        require(
            odd is None,
            f"Enroot cannot mount {mount}, for the {odd!r} in it; rename the folder, or reach it "
            "by a link of another name",
        )
    return Container(image, runtime, mounts, folder, gpus)


def choose_runtime(image: str, asked: Runtime) -> Literal["pyxis", "apptainer"]:
    """The runtime that this cluster has for the image, or the one asked for.

    Raises `ConfigError` if it is not there.
    """
    file = image.removesuffix("/")
    kind = {".sif": "apptainer", ".sqsh": "pyxis"}.get(Path(file).suffix)
    if "://" in image and not image.startswith(("docker://", "dockerd://")):
        kind = "apptainer"  # Enroot reads no other, such as oras:// and library://
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
    """The files and folders that the options of a program name, and those of the run and the data
    set that it reads or writes."""
    words = [word.partition("=")[2] or word for word in program.options]
    named = [w for w in words if w.startswith(("/", "~", "..")) or os.path.exists(home(w))]
    if stage is not None:  # what lies here of an earlier job need not lie on other nodes
        named.append(os.path.dirname(os.path.abspath(home(stage))))
    if program.config is not None:
        named += [str(program.config.run.path), *_settings_of(program.config)]
        named += map(str, _config_files(program.options))
    elif program.on_every_rank:
        named += _recorded(words)
    return [home(path) for path in named]


def _settings_of(config: Config) -> list[str]:
    """The files and folders that settings name, there or not."""
    paths = _paths_among(setting_types())
    if config.resume in ("auto", "none"):
        paths.remove("resume")
    return [str(value) for name in paths if (value := config.get(name)) is not None]


def _paths_among(names: Iterable[str]) -> list[str]:
    """Those settings whose value is a path."""
    kinds = setting_types()
    return [n for n in names if kinds[n] == PathText or PathText in get_args(kinds[n])]


def _config_files(options: Sequence[str]) -> list[Path]:
    """The file of --config and those that it builds on, where the image does not bring them."""
    found: list[Path] = []
    for before, word in zip(("", *options), options, strict=False):
        asked = word if before == "--config" else word.removeprefix("--config=")
        if (asked != word or before == "--config") and shipped(asked) is None:
            found += files_of(Path(asked))
    return found


def _recorded(words: Sequence[str]) -> list[str]:
    """The folders of the runs whose checkpoints are among `words`, which keep the results, and of
    the data sets that they were trained on."""
    found = []
    for run in filter(None, (run_of(Path(home(word))) for word in words)):
        found.append(str(run.path))
        with contextlib.suppress(ConfigError):  # of another version: the checkpoint has its own
            kept = settings_in(run.config)
            given = (kept[n].value for n in _paths_among(names_for("evaluate")) if n in kept)
            found += [place for place in map(home, given) if os.path.exists(place)]
    return found


def mounted(paths: Iterable[str]) -> list[str]:
    """The folders of the host that must be seen for `paths` to be what they are here.

    Of a file its folder, since a file is replaced by another of its name; where a path does not
    exist yet its first parent that does; behind a link its target as well. None lies in another,
    and / is never one.
    """
    found: set[Path] = set()
    for path in paths:
        wanted = place = Path(os.path.abspath(path))
        while not place.exists():
            place = place.parent
        require(
            place == wanted or place not in _OF_IMAGES,
            f"{wanted} does not exist, and in its place {place} cannot be mounted into a "
            "container, which has a folder of that name itself; make it first",
        )
        found |= {_folder_of(place), _folder_of(place.resolve())}
    found.discard(Path("/"))
    for path in sorted(map(str, found)):
        require(
            not set(path) & set(":,"),
            f"{path} cannot be mounted into a container, as its name has a colon or a comma; "
            "rename it, or reach it by a link of another name",
        )
    return sorted(str(p) for p in found if not any(q in p.parents for q in found))


def _folder_of(place: Path) -> Path:
    own = place.is_dir() or place.parent in {Path("/"), *_OF_IMAGES}
    return place if own else place.parent


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
