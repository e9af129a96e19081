"""The console: a bar on a terminal, plain lines elsewhere, colours only where they are wanted."""

import pytest
from terminal import on_terminal

from pipeline.monitor.progress import time_left

SHOW = """
import sys
sys.stdout = sys.stderr  # the terminal of this test
from pipeline.monitor import log, start_logging
from pipeline.monitor.progress import Progress
start_logging(0)
progress = Progress(1000, 0)
line = {"epoch": 3, "step": 5, "position": 400, "loss": 1.2345, "top1": 0.5, "lr": 0.1,
        "images_per_sec": 10.0, "data_wait_share": 0.25}
progress.train(line, "input-bound")
progress.advance(500)
log.warning("warning: of something")
progress.close()
"""


def test_a_terminal_shows_epoch_loss_speed_time_left_and_the_verdict(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, shown = on_terminal(["-c", SHOW])
    assert "epoch 3" in shown
    assert "loss 1.234 top1 50.0% 10 img/s 1:00 left input-bound" in shown
    assert " 50%|" in shown
    assert "\x1b[33mwarning: of something\x1b[0m" in shown
    assert "step 5" not in shown


def test_no_color_is_heeded(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    _, shown = on_terminal(["-c", SHOW])
    assert "loss 1.234" in shown
    assert "\x1b[3" not in shown
    assert "warning: of something" in shown


def test_elsewhere_lines_are_plain(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    said, shown = on_terminal(["-c", SHOW.replace("sys.stdout = sys.stderr", "")])
    assert said == ("epoch 3 step 5 loss 1.2345 top1 0.5000 lr 0.1 10 img/s data wait 25.0%\n")
    assert shown.strip() == "\x1b[33mwarning: of something\x1b[0m"  # stderr is the terminal


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0:00"), (187, "3:07"), (3723, "1:02:03"), (187_200, "2 d 4 h")],
)
def test_time_left_is_said_as_people_do(seconds, words):
    assert time_left(seconds) == words
