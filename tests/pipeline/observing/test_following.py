"""Lines that come to a run's files, each shown once."""

import json

from pipeline.observing.following import MetricsLines, PlainLines, Tail

TRAIN = {
    "event": "train", "step": 50, "epoch": 2, "loss": 1.25, "top1": 0.5, "lr": 0.1,
    "images_per_sec": 812.4, "data_wait_share": 0.013, "time": 1_790_000_000.0,
}  # fmt: skip


def append(path, *lines):
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def test_only_whole_lines_come_and_each_once(tmp_path):
    path = tmp_path / "log.txt"
    tail = Tail(path)
    assert tail.new_lines() == []
    path.write_text("one\ntw")
    assert tail.new_lines() == ["one"]
    assert tail.new_lines() == []
    append(path, "o", "three")
    assert tail.new_lines() == ["two", "three"]


def test_a_file_written_anew_by_a_restart_repeats_nothing(tmp_path):
    path, new = tmp_path / "metrics.jsonl", tmp_path / "new"
    append(path, "1", "2", "3")
    tail = Tail(path)
    assert tail.new_lines() == ["1", "2", "3"]
    append(new, "1", "2")
    new.replace(path)
    append(path, "3 again")
    assert tail.new_lines() == ["3 again"]
    path.write_text("0\n")
    assert tail.new_lines() == ["0"]


def test_training_lines_that_a_progress_bar_keeps_out_of_the_log_are_shown(tmp_path):
    append(tmp_path / "log.txt", "earlier")
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN | {"step": 25}))
    lines = PlainLines(tmp_path)
    assert lines.past() == ["earlier"]
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN), "{", json.dumps(TRAIN | {"loss": None}))
    assert lines.new() + lines.new() == [lines_of_training()]


def lines_of_training():
    import time

    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(TRAIN["time"]))
    return f"{stamp} epoch 2 step 50 loss 1.2500 top1 0.5000 lr 0.1 812 img/s data wait 1.3%"


def test_training_lines_that_are_in_the_log_come_once(tmp_path):
    append(tmp_path / "log.txt", "earlier")
    lines = PlainLines(tmp_path)
    lines.past()
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN))
    shown = lines.new()  # the log follows a moment later
    append(tmp_path / "log.txt", "10:00 epoch 2 step 50 loss 1.2500")
    assert shown + lines.new() + lines.new() == ["10:00 epoch 2 step 50 loss 1.2500"]


def test_a_line_written_between_two_looks_at_a_start_comes_once(tmp_path):
    lines = PlainLines(tmp_path)
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN))
    append(tmp_path / "log.txt", "10:00 epoch 2 step 50 loss 1.2500")
    assert lines.past() == ["10:00 epoch 2 step 50 loss 1.2500"]
    assert lines.new() + lines.new() == []


def test_metrics_are_shown_as_they_stand(tmp_path):
    append(tmp_path / "metrics.jsonl", "{}")
    lines = MetricsLines(tmp_path)
    assert lines.past() == []
    append(tmp_path / "metrics.jsonl", json.dumps(TRAIN))
    assert lines.new() == [json.dumps(TRAIN)]
