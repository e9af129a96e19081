"""Atomic writes, locks, and reading from what refuses for a while."""

from __future__ import annotations

import errno
import logging
import os
import time

import pytest

from pipeline.system import files
from pipeline.system.files import (
    content_of,
    locked,
    named,
    patiently,
    remove_partials,
    replacing,
    write_text,
)
from pipeline.system.regular import whole


def refused(number: int, path: object = None) -> OSError:
    return OSError(number, os.strerror(number), path)


def test_a_file_takes_its_place_at_the_end_of_the_body(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_text("old")
    with replacing(path) as new:
        assert (new.parent, new.suffix, new.name[0]) == (tmp_path, ".gz", ".")
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt()])
def test_a_body_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, fault):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(fault)), replacing(path) as new:
        new.write_text("half")
        raise fault
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("own", [True, False])
def test_what_the_disk_refuses_is_told_of_the_file_that_is_meant(tmp_path, own):
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "a") as new:
        raise refused(errno.ENOSPC, str(new) if own else None)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "none" / "a") as new:
        new.write_text("new")
    assert caught.value.filename == str(tmp_path / "none" / "a")


def test_what_another_file_refuses_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")


def test_the_content_is_on_the_disk_before_the_name_where_that_is_wanted(tmp_path, monkeypatch):
    order: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("rename"), rename(*names)))
    with replacing(tmp_path / "a", durable=False) as new:
        new.touch()
    assert order == ["rename"]
    with replacing(tmp_path / "a") as new:
        new.touch()
    assert order[1:] == ["sync", "rename", "sync"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


def test_a_name_may_be_as_long_as_can_be(tmp_path):
    path = tmp_path / ("ä" * 127)
    write_text(path, "text")
    assert path.read_text() == "text"


def test_leftovers_go_after_an_hour_and_from_a_folder_of_ones_own_at_once(tmp_path):
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    for place in (folder, scratch):
        place.mkdir()
        for name, age_sec in ((".partial-old-a", 4000), (".partial-new-a", 0), (".other", 4000)):
            (place / name).touch()
            os.utime(place / name, times=(time.time() - age_sec,) * 2)
    write_text(folder / "b", "text")
    assert sorted(os.listdir(folder)) == [".other", ".partial-new-a", "b"]
    with replacing(folder / "c", scratch) as new:
        assert new.parent == scratch
        new.touch()
    assert len(os.listdir(scratch)) == 3
    remove_partials(scratch)
    assert os.listdir(scratch) == [".other"]


def test_text_goes_through_links_and_into_devices(tmp_path):
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink() and real.read_text() == "new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_lock_has_one_holder(tmp_path):
    path = tmp_path / "lock"
    with locked(path, wait=False) as held:
        os.write(held, b"mine")
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
    with locked(path):
        assert path.read_text() == "mine"


def test_what_cannot_be_locked_is_told_from_what_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught, locked(tmp_path / "none" / "lock"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "lock")

    def no_locks(*_: object) -> None:
        raise refused(errno.ENOSYS)

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="not implemented") as caught, locked(tmp_path / "lock"):
        pass
    assert caught.value.filename is None


def words(error: Exception, nap_sec: float) -> str:
    return f"{getattr(error, 'strerror', error)}; again in {nap_sec:g} s"


class BadThing(ValueError):
    """What a reader makes of an error."""


def test_what_the_file_system_refuses_is_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0, 0.0))
    faults: list[Exception] = [refused(errno.EIO), refused(errno.ESTALE)]

    def read() -> str:
        if faults:
            raise faults.pop()
        return "content"

    with caplog.at_level(logging.WARNING, logger="trainyard"):
        assert patiently(read, OSError, words) == "content"
    assert caplog.messages == [
        "Stale file handle; again in 0 s", "Input/output error; again in 0 s",
    ]  # fmt: skip
    faults += [refused(errno.EIO) for _ in range(3)]
    with pytest.raises(OSError, match="Input/output error"):
        patiently(read, OSError, words)
    assert not faults


def test_only_what_the_file_system_refuses_is_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    tries: list[int] = []

    def read(cause: Exception | None) -> None:
        tries.append(1)
        raise BadThing("of no use") from cause

    for cause, wanted in ((None, 1), (ValueError(), 1), (refused(errno.EIO), 2)):
        with pytest.raises(BadThing):
            patiently(lambda cause=cause: read(cause), BadThing, words)
        assert len(tries) == wanted
        tries.clear()
    with pytest.raises(BadThing):
        patiently(lambda: read(refused(errno.EIO)), OSError, words)
    assert len(tries) == 1


def test_a_whole_file_is_read_in_spite_of_hiccups_and_one_that_is_not_there_at_once(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0, 0.0))
    path = tmp_path / "a"
    path.write_bytes(b"content")
    for missing in (tmp_path / "none", path / "below a file"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            content_of(missing, "the file")
    assert caplog.messages == []
    faults: list[Exception] = [refused(errno.EIO), MemoryError()]
    real = whole

    def read_bytes(of: object) -> bytes:
        if faults:
            raise faults.pop()
        return real(of)

    monkeypatch.setattr("pipeline.system.files.whole", read_bytes)
    assert content_of(path, "the file") == b"content"
    assert caplog.messages == [
        "the file cannot be read: Cannot allocate memory; tried again in 0 s",
        "the file cannot be read: Input/output error; tried again in 0 s",
    ]
    faults += [MemoryError() for _ in range(3)]
    with pytest.raises(OSError, match="Cannot allocate memory"):
        content_of(path, "the file")


def test_what_is_refused_of_an_open_file_has_its_name(tmp_path):
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left on device: '.*/a.txt'"), named(
        tmp_path / "a.txt"
    ):  # fmt: skip
        os.write(full, b"a")
    os.close(full)
    with pytest.raises(FileNotFoundError, match="/nowhere"), named(tmp_path):
        os.stat("/nowhere")
