"""Whether a run is held, seen without taking its lock."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

from pipeline.runs.state import is_locked
from pipeline.train.folder import RunFolder


def write_lock(folder):
    (folder / "lock").write_text("")
    return folder / "lock"


def test_a_lock_of_this_host_is_seen_and_its_end_too(tmp_path):
    assert not is_locked(RunFolder(tmp_path))
    lock = write_lock(tmp_path)
    assert not is_locked(RunFolder(tmp_path))
    with open(lock, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_locked(RunFolder(tmp_path))
    assert not is_locked(RunFolder(tmp_path))


def test_a_lock_of_the_whole_file_is_seen_as_nfs_makes_one(tmp_path):
    lock = write_lock(tmp_path)
    hold = (
        "import fcntl, sys\n"
        f"file = open({str(lock)!r}, 'r+')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        assert is_locked(RunFolder(tmp_path))
    assert not is_locked(RunFolder(tmp_path))


def test_a_file_system_that_does_not_answer_is_not_taken_for_a_free_lock(tmp_path, monkeypatch):
    def stat(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(OSError, match="Stale file handle"):
        is_locked(RunFolder(tmp_path))


def test_looking_never_turns_away_a_run_that_starts(tmp_path):
    lock = write_lock(tmp_path)
    look = (
        "from pathlib import Path\n"
        "from pipeline.runs.state import is_locked\n"
        "from pipeline.train.folder import RunFolder\n"
        "print('looking', flush=True)\n"
        f"while True: is_locked(RunFolder(Path({str(tmp_path)!r})))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", look], cwd=jobs.REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "looking\n"
            for _ in range(5000):
                with open(lock, "a+", encoding="utf-8") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError if taken
        finally:
            other.kill()
