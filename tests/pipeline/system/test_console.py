"""The progress bar: on a terminal below the lines, elsewhere a line now and then."""

from __future__ import annotations

import logging
import re
import sys

import pytest
from terminal import on_terminal

from pipeline.system import console
from pipeline.system.console import Bar

SHOW = """
import sys, time
from pipeline.system import console
from pipeline.system.console import Bar, log, start_logging
start_logging(0)
"""


def frames(shown: str) -> list[str]:
    return [one for one in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown)) if one]


def test_a_bar_has_its_unit_what_stands_before_and_words_behind():
    show = (
        SHOW
        + """
with Bar(4_000_000, "copying", unit="B", stream=sys.stderr) as bar:
    bar.move(1_000_000, "1/4 files")
    log.warning("a line above")
"""
    )
    _, shown = on_terminal(["-c", show])
    seen = frames(shown)
    assert seen[0].startswith("copying:   0%|")
    line = seen.index("warning: a line above")
    bar = re.compile(r"copying:  25%\|.*\| 1\.00M/4\.00M \[.*, 1/4 files\]")
    assert any(bar.match(frame) for frame in seen[:line]), seen
    assert any(bar.match(frame) for frame in seen[line:]), seen
    assert shown.rpartition("\r")[2].strip() == ""


def test_moves_at_once_are_drawn_once_and_words_that_are_told_at_once():
    show = (
        SHOW
        + """
bar = Bar(100, stream=sys.stderr)
for position in range(50):
    bar.move(position, f"moved to {position}")
bar.redraw("told ", [(0, "and this"), (1, "now")])
bar.close()
"""
    )
    _, shown = on_terminal(["-c", show])
    seen = frames(shown)
    assert len([frame for frame in seen if "moved" in frame]) < 10
    assert any(
        frame.startswith("told  49%|") and frame.endswith("| and this now") for frame in seen
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_without_a_terminal_nothing_is_drawn_and_a_line_is_due_now_and_then(
    wanted, monkeypatch, capsys
):
    with Bar(10, "copying", unit="B", stream=sys.stderr, wanted=wanted) as bar:
        bar.move(5, "half")
        assert not bar.shown
        assert not bar.line_due()
        assert bar.interval_sec == console.LINE_SEC
        monkeypatch.setattr(console, "LINE_SEC", -1.0)
        assert bar.line_due()
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_is_not_wanted_is_not_drawn_on_a_terminal_either():
    show = (
        SHOW
        + """
with Bar(10, "copying", stream=sys.stderr, wanted=False) as bar:
    bar.move(5, "half")
    bar.redraw("told", [(0, "now")])
"""
    )
    assert on_terminal(["-c", show]) == ("", "")


@pytest.mark.parametrize("text", ["3 images have no header", "warning: 3 images have no header"])
def test_a_warning_says_that_it_is_one_without_colour_too(text, tmp_path, capsys):
    log = logging.getLogger("trainyard")
    console.start_logging(0)
    console.log_to_file(tmp_path / "log.txt")
    try:
        log.warning(text)
        log.info("of no weight")
        log.error("error: fatal")
    finally:
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
    out, err = capsys.readouterr()
    assert out == "of no weight\n"
    assert err == "warning: 3 images have no header\nerror: fatal\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].endswith(" warning: 3 images have no header")
    assert not any("warning" in line for line in lines[1:])
