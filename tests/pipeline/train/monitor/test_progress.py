"""The console: a bar on a terminal, plain lines elsewhere, colours only where they are wanted."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios

import pytest
from jobs import PATIENCE_SEC, REPOSITORY
from terminal import on_terminal

from pipeline.train.monitor.progress import time_left

LINE = """
import sys
from pathlib import Path
from pipeline.system.console import log, log_to_file, start_logging
from pipeline.train.monitor.progress import Progress
start_logging(0)
line = {"epoch": 3, "step": 5, "position": 400, "loss": 1.2345, "top1": 0.5, "lr": 0.1,
        "images_per_sec": 10.0, "data_wait_share": 0.25}
"""
SHOW = (
    LINE
    + """
progress = Progress(1000, 0)
progress.train(line, "input-bound")
progress.move(500)
log.warning("warning: of something")
progress.close()
"""
)
ON_TERMINAL = "import sys; sys.stdout = sys.stderr  # the terminal of this test\n" + SHOW


def test_a_terminal_shows_epoch_loss_speed_time_left_and_the_verdict(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, shown = on_terminal(["-c", ON_TERMINAL])
    assert "epoch 4" in shown
    assert "| loss 1.234 top1 50.00% 10 img/s 1:00 left input-bound" in shown
    assert " 50%|" in shown
    assert "\x1b[33mwarning: of something\x1b[0m" in shown
    assert "step 5" not in shown
    *_, last, cleared, end = shown.split("\r")
    assert "left input-bound" in last
    assert (cleared.strip(), end) == ("", "")  # no bar stays below the last words


NARROW = """
import fcntl, struct, termios
fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 25, {columns}, 0, 0))
"""


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (70, "loss 1.234 10 img/s 1:00 left input-bound"),
        (52, "1:00 left input-bound"),
    ],
)
def test_a_narrow_terminal_keeps_a_bar_and_the_whole_verdict(columns, words):
    _, shown = on_terminal(["-c", NARROW.format(columns=columns) + ON_TERMINAL])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    bars = [frame.split("|") for frame in re.split(r"[\r\n]", shown) if "left" in frame]
    assert bars, shown
    assert all(len(bar) >= 10 and text == f" {words}" for _, bar, text in bars), shown


def test_no_color_is_heeded(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    _, shown = on_terminal(["-c", ON_TERMINAL])
    assert "loss 1.234" in shown
    assert "\x1b[3" not in shown
    assert "warning: of something" in shown


def test_elsewhere_lines_are_plain(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    said, shown = on_terminal(["-c", SHOW])
    assert said == ("epoch 4 step 5 loss 1.2345 top1 50.00% lr 0.1 10 img/s data wait 25.0%\n")
    assert shown.strip() == "\x1b[33mwarning: of something\x1b[0m"  # stderr is the terminal


OUTLIVE = (
    LINE
    + """
log_to_file(Path(sys.argv[1]) / "log.txt")
progress = Progress(1000, 0)
progress.train(line, "input-bound")
sys.stdin.readline()  # meanwhile the terminal goes away
progress.move(500)
progress.train({**line, "step": 10}, "input-bound")
log.info("validated")
progress.train({**line, "step": 15}, "input-bound")
progress.close()
"""
)


def test_a_terminal_that_goes_away_ends_neither_the_run_nor_the_logs_lines(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 200, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", OUTLIVE, str(tmp_path)], cwd=REPOSITORY,
        stdin=subprocess.PIPE, stdout=theirs, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        os.close(theirs)
        shown = b""
        while b"1.234" not in shown:
            assert select.select([ours], [], [], PATIENCE_SEC)[0], shown
            shown += os.read(ours, 65536)
        os.close(ours)
        _, trouble = child.communicate("go on\n", timeout=PATIENCE_SEC)
    assert "Traceback" not in trouble
    said = [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()]
    rest = "loss 1.2345 top1 50.00% lr 0.1 10 img/s data wait 25.0%"
    steps = [f"epoch 4 step {step} {rest}" for step in (5, 10, 15)]
    assert said == [*steps[:2], "validated", steps[2]]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0:00"), (187, "3:07"), (3723, "1:02:03"), (187_200, "2 d 4 h")],
)
def test_time_left_is_said_as_people_do(seconds, words):
    assert time_left(seconds) == words
