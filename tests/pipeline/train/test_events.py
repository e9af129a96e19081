"""Lines of metrics that no run wrote, or only half, cost nobody more than these lines."""

import json
import logging

import pytest
from made_runs import CIFAR, RunMaker, event, start

from pipeline.config import Config
from pipeline.report.runs import read_run
from pipeline.runs.listing import describe, list_runs
from pipeline.runs.state import read_state
from pipeline.train.events import metrics_of, read_metrics
from pipeline.train.folder import RunFolder
from pipeline.train.monitor.monitor import RunMonitor

TRAIN, VAL = event("train", 3), event("val", 4)
STRAY = [
    b"", b"5", b"[]", b"null", b'"train"', b"{", b"note to self: lr was too high", b"\xff\xfe{",
    b"[" * 200_000, b'{"event": "train", "step": ' + b"9" * 5000 + b"}",
    *(json.dumps(line).encode() for line in (
        {}, {"event": 5}, {"event": "train"}, {"step": 1, "position": 8},
        TRAIN | {"step": "3"}, TRAIN | {"step": 3.5}, TRAIN | {"step": True}, TRAIN | {"step": -1},
        TRAIN | {"position": None}, TRAIN | {"top1": "high"}, TRAIN | {"loss": [1]},
        TRAIN | {"loss": float("inf")}, TRAIN | {"time": None}, VAL | {"images": None},
        start(versions=["torch"]), start(total_steps="many"), start(train_images=10**30),
        {n: v for n, v in VAL.items() if n != "images"},
        {n: v for n, v in VAL.items() if n != "time"},
    )),
]  # fmt: skip


@pytest.mark.parametrize("line", STRAY, ids=lambda line: line[:60].decode("latin1"))
def test_what_is_no_whole_event_is_left_out(line):
    assert metrics_of(line) is None


@pytest.mark.parametrize("line", [
    TRAIN, VAL, start(), event("done", 5), event("of another", 5),
    {n: v for n, v in VAL.items() if n != "top5"},  # as of few classes
])  # fmt: skip
def test_what_is_one_is_read(line):
    assert metrics_of(json.dumps(line)) == line


def test_every_reader_passes_over_stray_lines_and_the_next_start_removes_them(tmp_path, caplog):
    folder = RunMaker(tmp_path)("a", CIFAR, steps=800)
    run, wanted = RunFolder(folder), read_run(folder)
    seen = describe(list_runs(folder), folder)
    lines = run.metrics.read_bytes().splitlines()
    mixed = [part for line, stray in zip(lines, STRAY * 2, strict=False) for part in (stray, line)]
    run.metrics.write_bytes(b"\n".join([*mixed, *lines[len(STRAY) * 2 :]]) + b"\n")
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        assert read_run(folder).lines == wanted.lines
    assert "lines of" in caplog.text
    assert "are cut or no event of a run, and left out: line 1, 3, " in caplog.text
    assert read_state(folder).step == 800
    assert describe(list_runs(folder), folder) == seen
    monitor = RunMonitor(run, Config(), 10**9, 99, 10**9)
    monitor.close()
    kept = [line for line in wanted.lines if line["event"] != "done"]
    assert read_metrics(run.metrics) == kept
    assert run.metrics.read_text() == "".join(json.dumps(line) + "\n" for line in kept)
