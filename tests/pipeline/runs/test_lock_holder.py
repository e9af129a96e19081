"""Whether a run is held, seen without taking its lock."""

import fcntl
import socket
import subprocess
import sys

import jobs

from pipeline.runs.lock_holder import is_locked, last_holder


def write_lock(folder, text=""):
    (folder / "lock").write_text(text)
    return folder / "lock"


def test_a_lock_of_this_host_is_seen_and_its_end_too(tmp_path):
    lock = write_lock(tmp_path)
    assert not is_locked(tmp_path)
    with open(lock, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


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
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_folder_without_a_lock_file_is_not_locked(tmp_path):
    assert not is_locked(tmp_path)
    assert last_holder(tmp_path) is None


def test_looking_never_turns_away_a_run_that_starts(tmp_path):
    lock = write_lock(tmp_path)
    look = (
        "from pathlib import Path\n"
        "from pipeline.runs.lock_holder import is_locked\n"
        "print('looking', flush=True)\n"
        f"while True: is_locked(Path({str(tmp_path)!r}))"
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


def test_the_holder_is_read_from_the_lock_file(tmp_path):
    write_lock(tmp_path, "process 12 on node-3.lan, Slurm job 77, since 2026-11-21 10:00:22\n")
    holder = last_holder(tmp_path)
    assert (holder.process, holder.host, holder.slurm_job) == (12, "node-3.lan", "77")
    assert holder.since == "2026-11-21 10:00:22"
    assert not holder.is_here
    write_lock(tmp_path, f"process 12 on {socket.gethostname()}, since 2026-11-21 10:00:22\n")
    holder = last_holder(tmp_path)
    assert holder.is_here
    assert holder.slurm_job is None
    write_lock(tmp_path, "another job")
    assert last_holder(tmp_path) is None
