"""The set-up: what it says when something is missing, what it installs, when it does nothing."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from launch import horovod_build
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
        "error: the program g++ is not on the PATH: install the Debian package g++, or do without "
        "Horovod by ENGINE=torch.\n"
    )
    assert not (checkout / ".venv").exists()


def test_each_missing_thing_gets_one_sentence_with_its_package(tmp_path: Path) -> None:
    told = missing(folder_with(tmp_path / "bin"), tmp_path, has_ensurepip=False)

    packages = [re.search("Debian package ([^.,]+)", line)[1] for line in told]
    assert packages == ["python3-venv", "python3-dev", "g++", "make"]
    assert all(line.count(". ") == 0 for line in told)
    assert ["ENGINE=torch" in line for line in told] == [False, True, True, True]


def test_without_horovod_no_compiler_is_needed(tmp_path: Path) -> None:
    empty = folder_with(tmp_path / "bin")
    assert missing(empty, tmp_path, "torch", has_ensurepip=True) == []
    (told,) = missing(empty, tmp_path, "torch", has_ensurepip=False)
    assert "python3-venv" in told


@pytest.mark.parametrize(
    ("engine", "newest", "version", "refused", "torch_runs"),
    [
        ("horovod", 12, (3, 9), True, False),
        ("horovod", 12, (3, 10), False, False),
        ("horovod", 12, (3, 12), False, False),
        ("horovod", 12, (3, 13), True, True),
        ("horovod", 12, (3, 15), True, False),
        ("torch", 14, (3, 9), True, False),
        ("torch", 14, (3, 14), False, False),
        ("torch", 14, (3, 15), True, False),
    ],
)
def test_the_python_must_be_one_that_runs_the_project(
    engine, newest, version, refused, torch_runs, tmp_path: Path
) -> None:
    told = missing(folder_with(tmp_path / "bin", "g++", "make"), HEADERS, engine, version)
    outside = f"Python 3.{version[1]} is outside 3.10 to 3.{newest}: "
    assert [line.startswith(outside) for line in told] == [True] * refused
    assert any("by ENGINE=torch" in line for line in told) == torch_runs


def test_an_engine_that_there_is_not_is_refused(checkout: Path) -> None:
    with pytest.raises(SetupError, match="^ENGINE=mpi must be horovod or torch.$"):
        Environment(checkout, "torch==2.13.0", "mpi")


def make_train(*variables: str) -> str:
    """The command by which `make train` would start the ranks."""
    shown = subprocess.run(
        ["make", "-n", "--no-print-directory", "train", *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.splitlines()[-1].strip()


def test_make_train_starts_the_ranks_by_the_engines_own_launcher() -> None:
    rest = "-m pipeline.train --config configs/demo.yaml"
    by_torch = ".venv/bin/torchrun --standalone --local-addr=127.0.0.1 --nproc-per-node=3"
    repeat = ".venv/bin/python -m launch.repeat"
    assert make_train("NP=3") == f"{repeat} .venv/bin/horovodrun -np 3 .venv/bin/python {rest}"
    assert make_train("NP=3", "ENGINE=torch") == f"{repeat} {by_torch} {rest}"


def test_make_hands_the_engine_to_the_set_up_and_tests_both(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho engine $ENGINE; exit 1\n")  # the set-up is make's first step
    python.chmod(0o755)

    def set_up_for(*arguments: str) -> str:
        command = ["make", *arguments, f"PYTHON={python}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout

    assert "engine torch" in set_up_for("train", "ENGINE=torch")
    assert "engine horovod" in set_up_for("train")
    assert "engine horovod" in set_up_for("test", "ENGINE=torch")


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

    finish(environment, ".ready", ".ready-horovod")
    assert environment.is_ready()
    assert not Environment(checkout, "torch==2.11.0").is_ready()

    for name in SOURCES:
        before = (checkout / name).read_bytes()
        (checkout / name).write_bytes(before + b"\n")
        assert not environment.is_ready(), name
        (checkout / name).write_bytes(before)
    assert environment.is_ready()


def finish(environment: Environment, *stages: str) -> None:
    """Marks an empty environment as one in which these stages are done."""
    environment.make_venv()
    for stage in stages:
        (environment.venv / stage).write_text(digest(environment.root, environment.torch))


def test_an_environment_without_horovod_is_whole_for_torch_and_gets_it_later(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Environment, "_install", lambda _: pytest.fail("all is there already"))
    both, alone = (Environment(checkout, "torch==2.13.0", name) for name in ("horovod", "torch"))
    finish(alone, ".ready")
    assert alone.is_ready() and not both.is_ready()
    # The stage that is left runs a module of the checkout, here one that only says so.
    (checkout / "launch/horovod_build.py").write_text("open('built', 'a').write('once ')")
    (checkout / ".venv/.ready").write_text(digest(checkout, "torch==2.13.0"))
    both.set_up()
    assert both.is_ready() and alone.is_ready()
    assert (checkout / "built").read_text() == "once "


def test_a_horovod_that_was_cut_short_leaves_the_environment_to_be_made_again(
    checkout: Path,
) -> None:
    both, alone = (Environment(checkout, "torch==2.13.0", name) for name in ("horovod", "torch"))
    finish(alone, ".ready")
    (checkout / "launch/horovod_build.py").write_text("raise SystemExit(1)")
    (checkout / ".venv/.ready").write_text(digest(checkout, "torch==2.13.0"))
    with pytest.raises(SetupError, match="the set-up stopped at Horovod: the reason is above"):
        both.set_up()
    assert not alone.is_ready(), "a package may be there in part"


def test_what_pip_says_is_shown_only_if_it_fails(
    checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environment = Environment(checkout, "torch==2.13.0")
    environment.make_venv()
    warns = "import sys; print('progress'); print('WARNING: dozens', file=sys.stderr); sys.exit({})"
    environment.stage("DALI", sys.executable, "-c", warns.format(0))
    assert capfd.readouterr().err == ""
    environment.stage("Horovod", sys.executable, "-c", warns.format(0), speaks=True)
    assert capfd.readouterr().err == "WARNING: dozens\n", "its own words, as they come"
    with pytest.raises(SetupError, match="stopped at DALI: the reason is above"):
        environment.stage("DALI", sys.executable, "-c", warns.format(3))
    assert "WARNING: dozens\n" in capfd.readouterr().err


def test_a_tool_of_horovods_build_that_pip_cannot_have_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(horovod_build, "TOOLS", ("setuptools<0",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(horovod_build.BuildError, match="could not install setuptools<0, which Hor"):
        horovod_build._install_tools()
    assert "No matching distribution found for setuptools<0" in capfd.readouterr().err


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
