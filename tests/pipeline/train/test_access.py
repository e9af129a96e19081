"""A run's folder that cannot be used: the error names what is in the way, and nothing changes."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest

from pipeline.ranks.world import World
from pipeline.system.failure import ExitCode, Reported, TrainingError
from pipeline.train.access import explained
from pipeline.train.folder import RunFolder
from pipeline.train.lock import first_cause_kept, locked

NOWHERE = "/nowhere/at/all"


RUN = "runs/test"


def link(name: str, to: str = NOWHERE) -> Callable[[Path], None]:
    return lambda below: parent_of(below / name).symlink_to(to)


def file(name: str) -> Callable[[Path], None]:
    return lambda below: parent_of(below / name).write_text("not a folder")


def folder(name: str) -> Callable[[Path], None]:
    return lambda below: parent_of(below / name).mkdir()


def pipe(name: str) -> Callable[[Path], None]:
    return lambda below: os.mkfifo(parent_of(below / name))


def parent_of(path: Path) -> Path:
    """`path`, when the folder around it is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


WRONG = [
    *((file(name), f"{name} is no folder") for name in ("runs", RUN)),
    *((link(name), f"{name} is a link to {NOWHERE}, which does not exist")
      for name in ("runs", RUN, f"{RUN}/checkpoints")),
    (link(RUN, "test"), "runs/test cannot be used: Too many levels of symbolic links"),
    *((folder(f"{RUN}/{name}"), f"test/{name} is a folder where a file belongs")
      for name in ("lock", "metrics.jsonl", "config.yaml", "log.txt", "failure.txt",
                   "stopped.txt", "origin.txt")),
    *((link(f"{RUN}/{name}", f"{NOWHERE}/x"), f"{name} is a link to {NOWHERE}/x, which does not e")
      for name in ("lock", "metrics.jsonl", "log.txt")),
    *((pipe(f"{RUN}/{name}"), f"test/{name} is a special file")
      for name in ("lock", "log.txt", "failure.txt")),
    *((file(f"{RUN}/{name}"), f"test/{name} is no folder")
      for name in ("checkpoints", "tensorboard", "stacks", "profile")),
]  # fmt: skip


def begin(run: Path) -> None:
    with locked(run, World()) as held, first_cause_kept(held, World()):
        pass


def listed(below: Path) -> list[str]:
    return sorted(str(path.relative_to(below)) for path in below.rglob("*"))


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_of_the_wrong_kind_is_named_with_what_to_do(tmp_path, make, message):
    make(tmp_path)
    before = listed(tmp_path)
    with pytest.raises(Reported) as refused:
        begin(tmp_path / RUN)
    assert refused.value.code == ExitCode.WRONG_INPUT
    assert message in refused.value.message
    assert "; repair or remove it, or choose another run.name" in refused.value.message
    assert listed(tmp_path) == before


def test_links_that_lead_somewhere_are_followed(tmp_path):
    (tmp_path / "scratch").mkdir()
    run = tmp_path / "test"
    run.symlink_to(tmp_path / "scratch")
    (tmp_path / "logs").mkdir()
    (run / "log.txt").symlink_to(tmp_path / "logs" / "of-test.txt")  # not there yet
    begin(run)
    assert (tmp_path / "logs" / "of-test.txt").exists()


@pytest.fixture
def as_another_user():
    """A folder that a user without rights owns nothing in; the test runs as that user."""
    below = Path(tempfile.mkdtemp())
    below.chmod(0o755)
    (below / "run").mkdir()
    (below / "run").chmod(0o755)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    else:
        (below / "run").chmod(0o555)
        below.chmod(0o555)
    yield below
    if is_root:
        os.seteuid(0)
    else:
        below.chmod(0o755)
        (below / "run").chmod(0o755)
    shutil.rmtree(below)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "run",
            "run may not be read and written by this user, or its disk is read-only; "
            "give this user write access, or mount it read-write, or choose another run.name",
        ),
        (
            "new",
            "new cannot use .*new: Permission denied; give this user write access, or "
            "mount it read-write, or choose another",
        ),
    ],
)
def test_a_folder_that_may_not_be_written_to_is_named(as_another_user, name, message):
    with pytest.raises(Reported, match=message) as refused:
        begin(as_another_user / name)
    assert refused.value.code == ExitCode.WRONG_INPUT


def test_a_full_or_failing_disk_is_no_mistake_of_the_user(tmp_path):
    for number, fix in ((28, "No space left on device; make room there"), (5, "Input/output err")):
        wrong = f"cannot use x: {fix}.* and start again"
        with pytest.raises(TrainingError, match=wrong), explained(RunFolder(tmp_path)):
            raise OSError(number, os.strerror(number), "x")


@pytest.mark.parametrize("name", ["metrics.jsonl", "failure.txt"])
def test_all_ranks_of_a_training_end_with_the_sentence(small_data, tmp_path, name):
    folder(f"test/{name}")(tmp_path)
    job = jobs.run(jobs.train(small_data, tmp_path), ranks=2, engine="torch")
    assert job.codes == [2, 2], job.text
    (line,) = [line for line in job.text.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {tmp_path}/test/{name} is a folder where a file belongs; ")
    assert "Traceback" not in job.text
