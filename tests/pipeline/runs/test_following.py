"""Lines that come to a run's files, each shown once."""

import json
import threading
import time

from jobs import wait_for
from made_runs import CIFAR, RunMaker

from pipeline.runs.follow import MetricsLines, PlainLines, Screen, follow
from pipeline.system.failure import ExitCode

TRAIN = {
    "event": "train", "step": 50, "epoch": 2, "loss": 1.25, "top1": 0.5, "lr": 0.1,
    "images_per_sec": 812.4, "data_wait_share": 0.013, "time": 1_790_000_000.0,
}  # fmt: skip


def append(path, *lines):
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def test_training_lines_that_a_progress_bar_keeps_out_of_the_log_are_shown(tmp_path):
    append(tmp_path / "log.txt", "earlier")
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN | {"step": 25}))
    lines = PlainLines(tmp_path)
    assert lines.past() == ["earlier"]
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN), "{", json.dumps(TRAIN | {"loss": None}))
    assert lines.new() + lines.new() == [lines_of_training()]


TEXT = "epoch 3 step 50 loss 1.2500 top1 50.00% lr 0.1 812 img/s data wait 1.3%"


def lines_of_training():
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(TRAIN["time"]))
    return f"{stamp} {TEXT}"


def test_training_lines_that_are_in_the_log_come_once(tmp_path):
    append(tmp_path / "log.txt", "earlier")
    lines = PlainLines(tmp_path)
    lines.past()
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN))
    shown = lines.new()  # the log follows a moment later
    append(tmp_path / "log.txt", f"10:00 {TEXT}")
    assert shown + lines.new() + lines.new() == [f"10:00 {TEXT}"]


def test_a_line_written_between_two_looks_at_a_start_comes_once(tmp_path):
    lines = PlainLines(tmp_path)
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN))
    append(tmp_path / "log.txt", f"10:00 {TEXT}")
    assert lines.past() == [f"10:00 {TEXT}"]
    assert lines.new() + lines.new() == []


def test_steps_that_a_later_start_takes_again_are_shown_again(tmp_path):
    append(tmp_path / "log.txt", f"10:00 {TEXT}")  # of a start that was killed after it
    lines = PlainLines(tmp_path)
    lines.past()
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN | {"images_per_sec": 700.0}))
    (again,) = lines.new() + lines.new()
    assert again == lines_of_training().replace("812 img/s", "700 img/s")


def test_metrics_are_shown_as_they_stand(tmp_path):
    append(tmp_path / "metrics.jsonl", "{}")
    lines = MetricsLines(tmp_path)
    assert lines.past() == []
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN))
    assert lines.new() == [json.dumps(TRAIN)]


def test_a_silent_run_is_followed_on_and_its_silence_is_told_once(tmp_path):
    folder = RunMaker(tmp_path)("far", CIFAR | {"run.step_timeout_sec": 0.2}, steps=400,
                                finished=False)  # fmt: skip
    (folder / "lock").write_text("process 1 on elsewhere, since 2026-11-21 10:00:22\n")
    time.sleep(0.3)
    said, warned, ends = [], [], []
    screen = Screen()
    screen.say, screen.warn = said.append, warned.append

    def look() -> None:
        ends.append(follow(folder, PlainLines(folder), screen))

    follower = threading.Thread(target=look, daemon=True)
    follower.start()
    wait_for(lambda: warned, "a word on the silence")
    time.sleep(1.2)  # two more looks
    append(folder / "log.txt", "10:00 validated")
    wait_for(lambda: "10:00 validated" in said, "the run's next line")
    (folder / "stopped.txt").write_text("SIGTERM before step 401\n")
    follower.join(60.0)
    assert [(run.state, code) for run, code in ends] == [("stopped", ExitCode.STOPPED)]
    assert warned[0].startswith(f"{folder}: no sign for 0 s; its host elsewhere is not this one; ")
    # The run's line was a sign of life: it may have fallen silent a second time.
    assert 1 <= len(warned) <= 2
