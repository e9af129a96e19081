"""The images' steps: the same list that `launch.environment` installs, in the same order for Docker
and for Apptainer, and linted. No image is built here: docs/containers.md says what was."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import REPOSITORY

from launch.environment import TORCH, dali_extra, missing

FOLDER = REPOSITORY / "containers"
DOCKERFILE, DEFINITION = FOLDER / "Dockerfile", FOLDER / "trainyard.def"
_STEP = re.compile(r"^(?:RUN|\s+) *containers/install\.sh (\w+)$", re.M)


@pytest.fixture
def steps(tmp_path: Path):
    """Runs steps of install.sh with programs that only note how they are called."""
    bin_folder, venv = tmp_path / "bin", tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    bin_folder.mkdir()
    notes = tmp_path / "notes"

    def put(path: Path, body: str = "") -> None:
        path.write_text(f'#!/bin/sh\n{body}\necho "{path.name} $*" >> {notes}\n')
        path.chmod(0o755)

    for name in ("apt-get", "rm"):
        put(bin_folder / name)
    # The lists are read by a real Python, and the environment is not made.
    put(bin_folder / "python3", f'[ "$1" = -c ] && exec {sys.executable} "$@"')

    def run(*names: str, cuda: str = "13.0", **env: str) -> list[str]:
        put(venv / "bin" / "python", f'[ "$1" = -c ] && echo {cuda} && exit 0')
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        clean = {
            name: value for name, value in os.environ.items() if name not in ("TORCH", "ENGINE")
        }
        for name in names:
            subprocess.run(
                [FOLDER / "install.sh", name], cwd=REPOSITORY, check=True,
                env={**clean, "PATH": path, "VENV": str(venv), **env},
            )  # fmt: skip
        return notes.read_text().splitlines()

    return run


def test_the_system_gets_all_that_the_set_up_would_miss(steps):
    (update, install, _) = steps("system")
    assert update.startswith("apt-get update")
    told = missing("", Path("/no/headers"), has_ensurepip=False)
    needed = {match[1] for line in told if (match := re.search(r"Debian package ([^.,]+)", line))}
    assert len(needed) == 4 and needed <= set(install.split())


def test_pytorch_is_the_one_that_the_project_is_tested_with(steps):
    venv, install = steps("torch")
    assert venv.startswith("python3 -m venv ")
    assert install == f"python -m pip install --no-cache-dir --quiet {TORCH}"
    *_, other = steps("torch", TORCH="torch==2.11.0")
    assert other.endswith(" torch==2.11.0")


@pytest.mark.parametrize("cuda", ["13.0", "12.8"])
def test_the_project_brings_the_dali_of_its_pytorch_and_horovod(steps, cuda):
    install, horovod, _ = steps("project", cuda=cuda)
    pip = "python -m pip install --no-cache-dir --quiet"
    assert install == f"{pip} .[{dali_extra(cuda)},export,horovod]"
    source = (REPOSITORY / "launch" / "environment.py").read_text()
    assert '"-m", "launch.horovod_build", "--install"' in source
    assert horovod == "python -m launch.horovod_build --install"


def test_without_horovod_nothing_is_compiled(steps):
    (install,) = steps("project", ENGINE="torch")
    assert install.endswith(f" .[{dali_extra('13.0')},export]")


def test_a_step_that_there_is_not_is_refused():
    done = subprocess.run([FOLDER / "install.sh", "torhc"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torhc is no step of ")


def test_both_images_take_the_same_steps_on_the_same_bases():
    docker, apptainer = DOCKERFILE.read_text(), DEFINITION.read_text()
    wanted = ["system", "torch", "project", "system"]
    assert _STEP.findall(docker) == _STEP.findall(apptainer) == wanted
    bases = re.findall(r"^ARG (?:RUN_)?BASE=(\S+)", docker, re.M)
    assert bases == re.findall(r"^From: (\S+)", apptainer, re.M)
    build, run = bases
    assert "-devel-" in build, "its compiler builds Horovod with NCCL"
    assert run == build.replace("-devel-", "-base-")
    (cuda,) = re.findall(r":(\d+\.\d+)", build)
    assert dali_extra(cuda) == "gpu", "the wheel of PyTorch is for CUDA 13"


def test_the_image_does_not_run_as_root_and_sees_gpus():
    text = DOCKERFILE.read_text()
    assert re.findall(r"^USER (\S+)", text, re.M) == ["1000"]
    assert "useradd --uid 1000" in text
    assert "NVIDIA_VISIBLE_DEVICES=all" in text


def test_both_images_are_given_the_same_sources():
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    docker = {line[1:] for line in ignored if line.startswith("!")} - {"containers"}
    (files,) = re.findall(r"^%files\n(.*?)\n\n", DEFINITION.read_text(), re.M | re.S)
    apptainer = {line.split()[0] for line in files.splitlines()} - {"containers/install.sh"}
    assert docker == apptainer
    assert all(line.split()[1] == f"/src/{line.split()[0]}" for line in files.splitlines())


def hadolint() -> str | None:
    return shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(hadolint() is None, reason="needs hadolint (extra test)")
def test_hadolint_finds_nothing():
    done = subprocess.run([hadolint(), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
