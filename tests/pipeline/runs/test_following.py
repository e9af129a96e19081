"""Lines that come to a run's files, each shown once."""

import json
import threading
import time

from jobs import wait_for
from made_runs import CIFAR, RunMaker, held_by

from pipeline.runs.follow import MetricsLines, PlainLines, Screen, follow
from pipeline.system.failure import ExitCode
from pipeline.train.folder import RunFolder

TRAIN = {
    "event": "train", "step": 50, "epoch": 2, "loss": 1.25, "top1": 0.5, "lr": 0.1,
    "images_per_sec": 812.4, "data_wait_share": 0.013, "time": 1_790_000_000.0,
}  # fmt: skip


def append(path, *lines):
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def test_lines_that_come_to_the_log_come_once(tmp_path):
    append(tmp_path / "log.txt", *(f"earlier {n}" for n in range(12)))
    lines = PlainLines(tmp_path)
    assert lines.past() == [f"earlier {n}" for n in range(2, 12)]
    append(tmp_path / "log.txt", "10:00 epoch 3 step 50 loss 1.2500")
    assert lines.new() + lines.new() == ["10:00 epoch 3 step 50 loss 1.2500"]


def test_metrics_are_shown_as_they_stand(tmp_path):
    append(tmp_path / "metrics.jsonl", "{}")
    lines = MetricsLines(tmp_path)
    assert lines.past() == []
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN))
    assert lines.new() == [json.dumps(TRAIN)]


def test_a_silent_run_is_followed_on_and_its_silence_is_told_once(tmp_path):
    folder = RunMaker(tmp_path)("far", CIFAR | {"run.step_timeout_sec": 0.2}, steps=400,
                                finished=False)  # fmt: skip
    (folder / "lock").write_text(held_by("elsewhere"))
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
    RunFolder(folder).record_stop("SIGTERM", 401)
    follower.join(60.0)
    assert [(run.state, code) for run, code in ends] == [("stopped", ExitCode.STOPPED)]
    assert warned[0].startswith(f"{folder}: no sign for 0 s; its host elsewhere is not this one; ")
    # The run's line was a sign of life: it may have fallen silent a second time.
    assert 1 <= len(warned) <= 2
