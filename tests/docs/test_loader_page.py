"""The programs of docs/loader.md run as they stand, and go on where they were killed."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jobs
import pages
import pytest
import torch

LOOP, PARALLEL = (
    block.text for block in pages.blocks(jobs.REPOSITORY / "docs" / "loader.md")
    if block.language == "python"
)  # fmt: skip
KILLER = jobs.REPOSITORY / "tests" / "loop_program.py"


def folder_of(root: Path, name: str, small_data: Path, program: str) -> Path:
    """A folder with the program and the data that it names."""
    folder = root / name
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "small").symlink_to(small_data)
    (folder / "loop.py").write_text(program)
    return folder


def ended(folder: Path, *argv: str) -> tuple[int, str]:
    """The exit code and the output of a program in `folder`."""
    done = subprocess.run(
        argv, cwd=folder, env=jobs.environment(), text=True, timeout=jobs.PATIENCE_SEC,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def require_same_end(folder: Path, whole: Path) -> None:
    mine, theirs = (torch.load(one / "loop.pt", weights_only=True) for one in (folder, whole))
    assert mine["loader"] == theirs["loader"]
    for name, value in theirs["model"].items():
        assert torch.equal(mine["model"][name], value), name


def reported(text: str) -> list[str]:
    return re.findall(r"^epochs: .*", text, re.M)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_plain_loop_goes_on_where_it_was_killed(
    small_data, tmp_path, monkeypatch, capsys, one_thread
):
    def here(folder: Path) -> str:
        """The output of the program, run in this process."""
        monkeypatch.chdir(folder)
        runpy.run_path("loop.py", run_name="__main__")
        return capsys.readouterr().out

    assert len(LOOP.splitlines()) == 30
    folders = [folder_of(tmp_path, name, small_data, LOOP) for name in ("whole", "killed")]
    whole, killed = folders
    text = here(whole)
    assert [line.split(",")[0] for line in reported(text)] == [f"epochs: {n}" for n in (1, 2, 3)]
    code, _ = ended(killed, sys.executable, str(KILLER), "3", "loop.py")
    assert code == -9
    assert torch.load(killed / "loop.pt", weights_only=True)["loader"]["epoch"] == 2
    rest = here(killed)
    assert reported(rest) == reported(text)[2:]
    require_same_end(killed, whole)
    # A state of the last batch of an epoch: only the validation is left.
    (whole / "loop.py").write_text(LOOP.replace("step % 3 == 2", "step == 4"))
    (whole / "loop.pt").unlink()
    here(whole)
    assert reported(here(whole)) == reported(text)[2:]


@pytest.mark.slow
def test_two_ranks_go_on_where_they_were_killed(small_data, tmp_path):
    whole, killed = (
        folder_of(tmp_path, name, small_data, PARALLEL) for name in ("whole", "killed")
    )
    # As the command torchrun, which lies beside a Python whose folder need not be on the path.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code, text = ended(whole, *torchrun, "loop.py")
    assert code == 0, text
    assert len(reported(text)) == 3
    code, _ = ended(killed, *torchrun, str(KILLER), "2", "loop.py")
    assert code != 0
    assert torch.load(killed / "loop.pt", weights_only=True)["loader"]["epoch"] == 1
    code, rest = ended(killed, *torchrun, "loop.py")
    assert code == 0, rest
    assert reported(rest) == reported(text)[-len(reported(rest)) :]
    require_same_end(killed, whole)
