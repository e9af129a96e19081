"""What a person sees who follows a run on a terminal."""

from __future__ import annotations

import fcntl
import json
import signal
import sys
from contextlib import contextmanager

import jobs
from made_runs import CIFAR, RunMaker, event, start
from terminal import Terminal

from pipeline.train.folder import RunFolder

# 1,000 steps of 128 images: 800 of them are done at position 102,400.
STARTED = "2026-11-21 10:00:26 a start in any words\n"
TRAIN = {
    "event": "train", "step": 800, "position": 102_400, "epoch": 2, "loss": 1.2345, "top1": 0.456,
    "lr": 0.1, "images_per_sec": 100.0, "data_wait_share": 0.01, "communication_share": 0.3,
    "time": 1_790_000_000.0,
}  # fmt: skip
BAR = "epoch 3  80%|"
FIGURES = "loss 1.234 top1 45.60% 100 img/s 4:16 left communication-bound"
GREEN = "\x1b[32m"


@contextmanager
def training(below):
    """A run whose lock is held, with a line of training; then a signal stops it."""
    folder = RunMaker(below)("live", CIFAR, steps=50, finished=False)
    (folder / "log.txt").write_text(STARTED)
    append(folder / "metrics.jsonl", json.dumps(start(total_steps=1000)))
    with open(folder / "lock", "a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        append(folder / "metrics.jsonl", json.dumps(TRAIN))
        yield folder
        RunFolder(folder).record_stop("SIGTERM", 801)


def append(path, line):
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def follower(folder, columns=200, **env):
    argv = ["-m", "pipeline.runs", str(folder.parent), "--follow", folder.name]
    return Terminal(argv, jobs.environment(PYTHONPATH=":".join(sys.path), **env), columns)


def test_a_terminal_has_a_bar_under_the_log_with_the_verdict(tmp_path):
    with training(tmp_path) as folder:
        screen = follower(folder)
        jobs.wait_for(lambda: "-bound" in screen.shown(), "the bar")
        assert STARTED.strip() in screen.shown()
        append(folder / "log.txt", "10:05 news")
        jobs.wait_for(lambda: "10:05 news" in screen.shown(), "the line of the log")
        next_line = TRAIN | {"step": 900, "position": 115_200, "images_per_sec": 50.0}
        append(folder / "metrics.jsonl", json.dumps(next_line | {"data_wait_share": 0.5}))
        jobs.wait_for(lambda: "input-bound" in screen.shown(), "the next line of metrics")
    assert screen.wait() == 75
    shown = screen.shown_lines()
    (first,) = [line for line in shown if FIGURES in line][:1]
    assert BAR in first
    assert any("90%|" in line and "50 img/s 4:16 left input-bound" in line for line in shown)
    # A line of the log stands by itself, and the bar again below it.
    at = shown.index("10:05 news")
    assert any(FIGURES in line for line in shown[at + 1 :])
    assert GREEN in screen.shown()
    assert shown[-1] == f"{folder}: stopped: by SIGTERM before step 801"


def test_json_is_not_mixed_with_a_bar(tmp_path):
    with training(tmp_path) as folder:
        argv = ["-m", "pipeline.runs", str(tmp_path), "--follow", "live", "--json"]
        screen = Terminal(argv, jobs.environment())
        next_line = TRAIN | {"step": 900}
        jobs.wait_for(lambda: _said(folder, screen, next_line), "the line of metrics")
    assert screen.wait() == 75
    assert all(json.loads(line)["event"] == "train" for line in screen.shown_lines())


def _said(folder, screen, line):
    append(folder / "metrics.jsonl", json.dumps(line))
    return '"step": 900' in screen.shown()


def test_a_line_of_another_version_is_passed_over_and_no_color_is_respected(tmp_path):
    with training(tmp_path) as folder:
        append(folder / "metrics.jsonl", json.dumps(event("train", 810)))
        screen = follower(folder, NO_COLOR="1")
        append(folder / "log.txt", "10:05 news")
        jobs.wait_for(lambda: "10:05 news" in screen.shown(), "the line of the log")
        append(folder / "metrics.jsonl", json.dumps(TRAIN))
        jobs.wait_for(lambda: "-bound" in screen.shown(), "the bar")
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 130
    assert GREEN not in screen.shown()
