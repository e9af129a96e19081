"""Text for people: one line of what can be shown, whatever bytes a name has and whoever listens."""

from __future__ import annotations

import io
import logging
import os
import subprocess

import pytest

from pipeline.system import console
from pipeline.system.console import Bar, ConsoleHandler, log_to_file, say, table
from pipeline.system.files import read_text, write_text
from pipeline.system.words import printable, shell_word

NAME = "caf\udce9 \x1b[31m\nerror: forged\r\x07\x9b \u202e\u2028日本 \U0001f600"
SHOWN = r"caf\xe9 \x1b[31m\nerror: forged\r\x07\x9b \u202e\u2028日本 " + "\U0001f600"


def test_what_is_no_character_to_see_is_escaped_and_all_else_stays():
    assert printable(NAME) == SHOWN
    for name in ("a b", "ä/日本", "a\u00a0b", "a\u3000b", "\U0001f600", r"C:\new"):
        assert printable(name) == name
    assert printable("\ud800") == r"\ud800"
    every = "".join(map(chr, range(0x110000)))
    shown = printable(every)
    assert not {c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000}
    shown.encode("utf-8")


@pytest.mark.parametrize(
    "name", ["plain", "a b", "it's", "$HOME", "caf\udce9", "a\nb", "\x1b[31m'\\", "日本 x"]
)
def test_a_word_of_a_suggested_command_is_what_it_was_in_a_shell(name):
    word = shell_word(name)
    assert printable(word) == word
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


def stream_of(charset: str) -> tuple[io.BytesIO, io.TextIOWrapper]:
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding=charset, errors="strict", newline="\n")


@pytest.mark.parametrize(
    ("charset", "last"),
    [("utf-8", "日本 \U0001f600".encode()), ("ascii", rb"\u65e5\u672c \U0001f600"),
     ("latin-1", rb"\u65e5\u672c \U0001f600")],
)  # fmt: skip
def test_a_line_is_said_in_any_charset(charset, last):
    raw, stream = stream_of(charset)
    say(NAME, "and more", stream=stream)
    first, second, end = raw.getvalue().split(b"\n")
    assert (second, end) == (b"and more", b"")
    assert first == SHOWN[: SHOWN.index("日")].encode() + last


@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
def test_a_record_is_one_line_on_the_console_and_in_the_file(charset, level, tmp_path):
    raw, stream = stream_of(charset)
    log_to_file(tmp_path / "log.txt")
    log = logging.getLogger("trainyard")
    file = log.handlers[-1]
    handler = ConsoleHandler(stream)
    try:
        record = log.makeRecord("trainyard", level, "", 0, "the image %s", (NAME,), None)
        handler.emit(record)
        file.emit(record)
    finally:
        log.removeHandler(file)
        file.close()
    (line,) = raw.getvalue().decode().splitlines()
    word = "warning: " if level == logging.WARNING else ""
    assert line.startswith(
        word + r"the image caf\xe9 \x1b[31m\nerror: forged\r\x07\x9b \u202e\u2028"
    )
    (line,) = (tmp_path / "log.txt").read_text("utf-8").splitlines()
    assert line.endswith(f"the image {SHOWN}")


def test_a_table_keeps_each_cell_on_its_line_and_its_columns_in_line():
    rows = table(("run", "state"), [("a\nb", "x"), (NAME, "failed: \x1b[2J")]).split("\n")
    assert len(rows) == 3
    assert {row.index(word) for row, word in zip(rows, ("state", "x", "failed"), strict=True)} == {
        len(SHOWN) + 2
    }
    assert rows[2].endswith(r"failed: \x1b[2J")


def test_a_bar_shows_names_in_the_same_way():
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Bar(10, "verifying \x1b[2Ja\nb", stream=stream) as bar:
        bar.redraw("epoch 1 ", [(0, "left")])
        bar.move(5, "a\nb")
    assert r"verifying \x1b[2Ja\nb" in stream.getvalue() and "\x1b[2J" not in stream.getvalue()


def test_a_text_file_keeps_the_bytes_of_a_name(tmp_path):
    path = tmp_path / "a"
    write_text(path, NAME)
    assert path.read_bytes() == os.fsencode(NAME)
    assert read_text(path) == NAME
    link = tmp_path / "link"
    link.symlink_to(path)
    write_text(link, "caf\udce9")
    assert path.read_bytes() == b"caf\xe9"


class Refusing(io.StringIO):
    """A stream whose disk is full, or whose reader has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(BrokenPipeError(32, "Broken pipe"), None), (OSError(28, "No space left"), "No space left")],
)
def test_a_stream_that_takes_nothing_costs_no_work(error, reason, monkeypatch):
    monkeypatch.setattr(console, "_refused", [])
    monkeypatch.setattr("sys.stdout", Refusing(error))
    say("a", "b")
    say("c")
    assert console.output_refused() == reason


def test_an_stderr_that_takes_nothing_is_nobodys_loss(monkeypatch):
    monkeypatch.setattr(console, "_refused", [])
    say("a", stream=Refusing(OSError(28, "No space left")))
    assert console.output_refused() is None
