"""The set-up: what it says when something is missing, what it installs, when it does nothing."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from launch.environment import SOURCES, Environment, SetupError, dali_extra, digest, missing

ROOT = Path(__file__).resolve().parents[2]
HEADERS = Path(sysconfig.get_path("include"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of the set-up in a folder of their own, without an environment."""
    for name in (*SOURCES, "launch/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path)
    return tmp_path


def folder_with(folder: Path, *programs: str) -> str:
    """A PATH on which only these programs are found."""
    folder.mkdir()
    for program in programs:
        (folder / program).touch(mode=0o755)
    return str(folder)


def test_a_machine_without_a_compiler_is_told_which_package_has_it(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.environment"],
        cwd=checkout,
        env={"PATH": folder_with(checkout / "bin", "make")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the program g++ is not on the PATH: install the Debian package g++.\n"
    )
    assert not (checkout / ".venv").exists()


def test_each_missing_thing_gets_one_sentence_with_its_package(tmp_path: Path) -> None:
    told = missing(folder_with(tmp_path / "bin"), tmp_path, has_ensurepip=False)

    packages = [line.rsplit("Debian package ", 1)[1] for line in told]
    assert packages == ["python3-venv.", "python3-dev.", "g++.", "make."]
    assert all(line.count(". ") == 0 for line in told)


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 12), (3, 13)])
def test_the_python_must_be_one_that_runs_the_project(version, tmp_path: Path) -> None:
    told = missing(folder_with(tmp_path / "bin", "g++", "make"), HEADERS, version)
    refused = [line for line in told if f"Python 3.{version[1]} is outside 3.10 to 3.12" in line]
    assert told == refused and bool(refused) == (version in ((3, 9), (3, 13)))


@pytest.mark.parametrize(
    ("cuda", "extra"), [(None, "gpu"), ("12.8", "gpu-cuda12"), ("13.0", "gpu"), ("13.2", "gpu")]
)
def test_dali_follows_the_cuda_version_of_pytorch(cuda: str | None, extra: str) -> None:
    assert dali_extra(cuda) == extra


def test_a_cuda_version_without_dali_is_refused() -> None:
    with pytest.raises(SetupError, match=r"CUDA 11\.8, but DALI has wheels for CUDA 12 and 13"):
        dali_extra("11.8")


def test_the_set_up_is_done_until_one_of_its_files_changes(checkout: Path) -> None:
    environment = Environment(checkout, "torch==2.13.0")
    assert not environment.is_ready()

    (checkout / ".venv").mkdir()
    (checkout / ".venv/.ready").write_text(digest(checkout, "torch==2.13.0"))
    assert environment.is_ready()
    assert not Environment(checkout, "torch==2.11.0").is_ready()

    for name in SOURCES:
        before = (checkout / name).read_bytes()
        (checkout / name).write_bytes(before + b"\n")
        assert not environment.is_ready(), name
        (checkout / name).write_bytes(before)
    assert environment.is_ready()


def test_an_environment_is_made_again_after_an_interruption_or_for_another_pytorch(
    checkout: Path,
) -> None:
    leftover = checkout / ".venv/half-a-package"
    leftover.parent.mkdir()
    leftover.touch()
    environment = Environment(checkout, "torch==2.13.0")
    assert not environment.is_whole()

    environment.make_venv()
    assert environment.python.exists()
    assert not leftover.exists()
    assert environment.is_whole()
    assert not Environment(checkout, "torch==2.11.0").is_whole()
    earlier = checkout / ".venv/.installing"  # of a version that marked it so
    earlier.touch()
    assert not environment.is_whole()
    earlier.unlink()

    environment.stage("PyTorch", sys.executable, "-c", "pass")
    assert environment.is_whole()
    with pytest.raises(SetupError, match="the set-up stopped at PyTorch: the reason is above"):
        environment.stage("PyTorch", sys.executable, "-c", "raise SystemExit(1)")
    assert not environment.is_whole()
