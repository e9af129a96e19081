"""Lines that come to a file: each once, whole ones only, and nothing read a second time."""

import json
import os

import pytest
from made_runs import CIFAR, RunMaker, event, start

from pipeline.runs.state import RunReader, read_state
from pipeline.runs.tail import NewLines, Tail


def append(path, *lines):
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def bytes_read(look):
    """How many bytes this process reads from files while it looks."""

    def so_far():
        with open("/proc/self/io", encoding="ascii") as counters:
            return int(counters.readline().split()[1])

    before = so_far()
    look()
    return so_far() - before


def test_only_whole_lines_come_and_each_once(tmp_path):
    path = tmp_path / "log.txt"
    lines = NewLines(path)
    assert lines() == []
    path.write_text("one\ntw")
    assert lines() == ["one"]
    assert lines() == []
    append(path, "o", "three")
    assert lines() == ["two", "three"]


def test_a_file_rewritten_by_a_restart_repeats_nothing(tmp_path):
    path, new = tmp_path / "metrics.jsonl", tmp_path / "new"
    append(path, "1", "2", "3")
    lines = NewLines(path)
    assert lines() == ["1", "2", "3"]
    append(new, "1", "2")
    new.replace(path)
    append(path, "3 again")
    assert lines() == ["3 again"]
    path.write_text("0\n")
    assert lines() == ["0"]


def test_a_file_rewritten_in_place_and_longer_is_known_by_its_bytes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, *"abcd")
    tail = Tail(path)
    assert tail.read() == (True, [b"a", b"b", b"c", b"d"])
    append(path, "e")
    assert tail.read() == (False, [b"e"])
    path.write_text("a\nx\ny\nz\nv\nw\n")
    assert tail.read() == (True, [b"a", b"x", b"y", b"z", b"v", b"w"])
    path.unlink()
    assert tail.read() == (True, [])


@pytest.fixture
def long_run(tmp_path):
    folder = RunMaker(tmp_path)("long", CIFAR, steps=50_000, finished=False)
    append(folder / "metrics.jsonl", json.dumps(start(total_steps=64_000)))
    return folder


def test_a_look_reads_what_is_new_and_not_the_whole_files(long_run):
    reader = RunReader(long_run)
    whole = bytes_read(reader.read)
    size = (long_run / "metrics.jsonl").stat().st_size
    assert whole > size > 200_000
    lines = NewLines(long_run / "metrics.jsonl")
    lines()
    append(long_run / "metrics.jsonl", json.dumps(event("train", 50_050)))

    def look():
        assert reader.read().step == 50_050
        assert len(lines()) == 1

    assert bytes_read(look) < size / 4
    assert bytes_read(reader.read) < size / 4


def test_looks_at_a_growing_run_say_what_one_look_would(long_run):
    reader = RunReader(long_run)
    path = long_run / "metrics.jsonl"
    assert reader.read() == read_state(long_run)
    assert (reader.read().step, reader.read().total_steps) == (50_000, 64_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # a resume takes lines back, the last one is cut
    assert reader.read() == read_state(long_run)
    assert 20_000 < reader.read().step < 30_000
    append(path, "", json.dumps(event("val", 30_000, top1=0.97)))
    append(path, json.dumps(start(step=25_000, total_steps=30_000)))
    (long_run / "config.yaml").write_text(
        (long_run / "config.yaml").read_text().replace("epochs: 90.0", "epochs: 80.0")
    )
    found = reader.read()
    assert found == read_state(long_run)
    assert (found.step, found.total_steps, found.best_top1) == (30_000, 30_000, 0.97)
    append(path, json.dumps(event("done", 30_000)))
    assert reader.read().state == "finished"
    fresh = long_run / "fresh"
    fresh.write_text("")
    os.replace(fresh, path)
    assert (reader.read().state, reader.read().step) == ("interrupted", 0)
