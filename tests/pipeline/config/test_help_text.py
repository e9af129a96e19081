"""What `--help` of every command says about its options, in the words of who types them."""

from __future__ import annotations

import re
from pathlib import Path

import jobs
import pytest

from pipeline.config import setting_names
from pipeline.config.setting import shown
from pipeline.prepare.options import OPTIONS

COMMANDS = [
    "train", "evaluate", "predict", "export", "report", "runs", "benchmark loader",
    *[f"prepare {name}" for name in OPTIONS],
]  # fmt: skip


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """On one line, as where lines break is the terminal's affair."""
    module, *name = command.split()
    module += "" if module == "predict" else ".__main__"
    with pytest.raises(SystemExit) as end:
        jobs.command_module(f"pipeline.{module}").main([*name, "--help"])
    assert end.value.code in (0, None)
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_no_names_of_pythons_types(command, capsys):
    text = help_of(command, capsys)
    noise = ("<class '", "Optional[", "Literal[", "Union[", "type:", "| null", "tuple[", "ITEM")
    assert not [word for word in (*noise, "==", "default: False") if word in text], text


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("prepare mean", r"--train-crop \{random_resized_crop,scale_jitter\} data.train_crop of"),
        ("prepare mean", r"--area \[X,X\] data.area of the training; null: that of --config, or "),
        ("prepare mean", r"which holds train. \(required\) --cache-dir PATH Folder of"),
        ("prepare mean", r"--workers N Threads that [^(]+ \(default: 0\)"),
        ("train", r"least and greatest share of the image's area. \(default: \["),
        ("train", r"--data.flip \{true,false\} Mirror half [^(]+ \(default: true\)"),
        ("train", r"Images per optimizer step [^(]+ \(default: 2048\)"),
        ("evaluate", r"--data.val_resize N Shorter side in [^(]+ \(default: as stored\)"),
    ],
)
def test_options_say_what_form_their_value_has_and_which_default(command, shown, capsys):
    assert re.search(shown, help_of(command, capsys))


def test_every_setting_is_an_option_with_a_help_text(capsys):
    text = help_of("train", capsys)
    options = [
        re.escape(f"--{name}") + r" (?:\{\S+\}|\[\S+\]|[A-Z_]+) " for name in setting_names()
    ]
    assert [one for one in options if not re.search(one + "(?!--)", text)] == []


def test_a_default_is_shown_as_one_would_write_it():
    values = (None, True, (0.08, 1.0), [], "a", Path("x/y"))
    assert [shown(value) for value in values] == ["null", "true", "[0.08,1.0]", "[]", "a", "x/y"]
